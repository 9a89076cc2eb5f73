"""What a solver step costs beside the denoiser: our samplers, hand-written loops, diffusers and azula in one run.

The denoiser is an exact Gaussian with unit covariance, one division and one product, so that nearly all the time is
overhead. Every contender runs the same noise levels; the figure is the median time of a step in microseconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import Row, show
from farfield.denoiser import Denoiser
from farfield.sampling import Sampler, karras

STEPS = 40
SHAPES = ((64, 2), (16, 3, 32, 32))
LIMIT = 1.5


class Unit(Denoiser):
    """The denoiser of N(0, I)."""

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        return x * (1 / (1 + sigma * sigma))


def hand_euler(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        slope = (x - denoiser(x, a)) / a
        x = x + (b - a) * slope
    return x


def hand_heun(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        slope = (x - denoiser(x, a)) / a
        y = x + (b - a) * slope
        if b > 0:
            y = x + (b - a) * (slope + (y - denoiser(y, b)) / b) / 2
        x = y
    return x


def hand_dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    old = None
    previous = 0.0
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        h = math.log(a / b)
        r = previous / h
        middle = d if old is None else (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x = (b / a) * x - math.expm1(-h) * middle
        old, previous = d, h
    return x


def ours(name: str) -> Callable[[Denoiser, Tensor, list[float]], Tensor]:
    sampler = Sampler(name, karras(STEPS))
    return lambda denoiser, x, sigmas: sampler.run(denoiser, x).x


def diffusers_loop(kind: str) -> Callable[[Denoiser, Tensor, list[float]], Tensor]:
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


def azula_loop(kind: str, shape: tuple[int, ...]) -> Callable[[Denoiser, Tensor, list[float]], Tensor] | None:
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


@torch.no_grad()
def run() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for shape in SHAPES:
            x, model = 80 * torch.randn(shape), Unit(shape[1:])
            sigmas = list(karras(STEPS))
            for kind, hand in (("euler", hand_euler), ("heun", hand_heun), ("dpmpp_2m", hand_dpmpp_2m)):
                loops = {"hand": hand, "farfield": ours(kind), "diffusers": diffusers_loop(kind)}
                azula = azula_loop(kind, shape)
                if azula is not None:
                    loops["azula"] = azula
                contenders = {n: partial(f, model, x, sigmas) for n, f in loops.items()}
                measure(contenders, 3)
                micro = {n: 1e6 * t / STEPS for n, t in measure(contenders).items()}
                peers = [v for n, v in micro.items() if n in ("diffusers", "azula")]
                detail = ", ".join(f"{n} {v:.0f} µs" for n, v in micro.items())
                ratio = micro["farfield"] / micro["hand"]
                name = f"{kind} step, state {shape}"
                rows.append(Row(name, ratio, LIMIT, "× hand-written", detail))
                rows.append(Row(f"{name}, against peers", micro["farfield"] / min(peers), 1.0, "× best peer", ""))
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    show(run())
