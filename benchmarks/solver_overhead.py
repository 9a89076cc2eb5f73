"""What a solver step costs beside the denoiser: our samplers, hand-written loops, diffusers and azula in one run.

The denoiser is an exact Gaussian with unit covariance, one division and one product, so that nearly all the time is
overhead. Every contender runs the same noise levels, in turns; the figure is the ratio of the median times of a run, planning
and checks among them. A solver and its loop have to give the same samples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.solver_loops import LOOPS, Loop
from benchmarks.table import Row, show
from farfield.denoiser import Denoiser
from farfield.processes.base import expand
from farfield.sampling import Sampler, karras
from farfield.sampling.solvers import SOLVERS, make_solver

STEPS = 40
SHAPES = ((64, 2), (16, 3, 32, 32))
LIMIT = 2.0
#: The rules that most people use have to be closer.
CLOSER = {"euler": 1.5, "heun": 1.5, "dpmpp_2m": 1.5}
#: Options of the rules whose loop is not what they do by default.
PINNED: dict[str, dict[str, Any]] = {"whitened": {"order": 2, "corrector": "always"}}
#: Those that a peer has too.
PEERS = ("euler", "heun", "dpmpp_2m")


class Unit(Denoiser):
    """The denoiser of N(0, I)."""

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        level = expand(sigma, x) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        return x * (1 / (1 + level * level))


def ours(name: str) -> Loop:
    sampler = Sampler(make_solver(name, **PINNED.get(name, {})), karras(STEPS))
    return lambda denoiser, x, sigmas: sampler.run(denoiser, x).x


def diffusers_loop(kind: str) -> Loop:
    """A scheduler of diffusers, fed with our levels; EDM ones take the raw network output, so we invert their wrapping."""
    import diffusers

    def edm(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
        scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
        scheduler.set_timesteps(STEPS)
        for t, s in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
            # With sigma_data = 1 and N(0, I) data the raw output F is 0: no more work than the denoiser itself.
            raw = x * 0.0 + s * 0.0
            scheduler.scale_model_input(x, t)
            x = scheduler.step(raw, t, x).prev_sample
        return x

    def multistep(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
        scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", final_sigmas_type="zero")
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = torch.tensor(sigmas)
        scheduler.set_begin_index(0)
        for t, s in zip(scheduler.timesteps, sigmas, strict=False):
            x = scheduler.step(denoiser(x, s), t, x).prev_sample
        return x

    def heun(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
        scheduler = diffusers.HeunDiscreteScheduler(prediction_type="epsilon", use_karras_sigmas=True)
        scheduler.set_timesteps(STEPS)
        levels = scheduler.sigmas.tolist()
        for k, t in enumerate(scheduler.timesteps):
            s = levels[k]
            x = scheduler.step((x - denoiser(x, s)) / s, t, x).prev_sample
        return x

    return {"euler": edm, "heun": heun, "dpmpp_2m": multistep}[kind]


def azula_loop(kind: str, shape: tuple[int, ...]) -> Loop | None:
    """A sampler of azula on its own variance-exploding schedule, where it has one of that kind."""
    import azula.sample
    from azula.denoise import Denoiser as AzulaDenoiser
    from azula.denoise import DiracPosterior
    from azula.noise import VESchedule

    name = {"euler": "EulerSampler", "heun": "HeunSampler"}.get(kind)
    if name is None or not hasattr(azula.sample, name):
        return None

    class AzulaUnit(AzulaDenoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VESchedule(0.002, 80.0)

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            _, sigma = self.schedule(t)
            return DiracPosterior(mean=x_t * (1 / (1 + sigma * sigma)))

    sampler = getattr(azula.sample, name)(AzulaUnit(), steps=STEPS, silent=True)
    return lambda denoiser, x, sigmas: sampler(x)


def measure(contenders: dict[str, Callable[[], object]], rounds: int = 31) -> dict[str, float]:
    """Median seconds of each, interleaved so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def agree(name: str, model: Denoiser, x: Tensor, sigmas: list[float]) -> None:
    """Refuse to time a loop that is another rule."""
    found, wanted = ours(name)(model, x, sigmas), LOOPS[name](model, x, sigmas)
    apart = float((found - wanted).abs().max())
    # A step of rk45 is accepted or not by a comparison that the last bits may turn.
    limit = 1e-3 if name == "rk45" else 1e-5
    if not apart < limit:
        raise AssertionError(f"{name}: solver and loop differ by {apart:.1e}; expected less than {limit:g}")


@torch.no_grad()
def run() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for shape in SHAPES:
            x = 80 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
            model, sigmas = Unit(shape[1:]), list(karras(STEPS))
            for kind in SOLVERS:
                agree(kind, model, x, sigmas)
                loops = {"hand": LOOPS[kind], "farfield": ours(kind)}
                if kind in PEERS:
                    loops["diffusers"] = diffusers_loop(kind)
                    azula = azula_loop(kind, shape)
                    if azula is not None:
                        loops["azula"] = azula
                contenders = {n: partial(f, model, x, sigmas) for n, f in loops.items()}
                measure(contenders, 1)
                micro = {n: 1e6 * t / STEPS for n, t in measure(contenders, 31 if kind in PEERS else 15).items()}
                detail = ", ".join(f"{n} {v:.0f} µs" for n, v in micro.items())
                ratio = micro["farfield"] / micro["hand"]
                name = f"{kind} step, state {shape}"
                rows.append(Row(name, ratio, CLOSER.get(kind, LIMIT), "× hand-written", detail))
                if kind in PEERS:
                    best = min(v for n, v in micro.items() if n in ("diffusers", "azula"))
                    rows.append(Row(f"{name}, against peers", micro["farfield"] / best, 1.0, "× best peer", ""))
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    show(run())
