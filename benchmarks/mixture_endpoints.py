"""End-point error against evaluations on an exact law: a 30-component mixture fitted to CIFAR-10 pooled to 16×16.

Every solver starts from the same 32 noise vectors at σ = 80 and is compared with the same fine solution. Each peer is given
every noise grid (Karras with ρ = 7 and 12, uniform log-SNR, and the one from the data's spectrum) and counts with its best
one at each budget; so does each of our own solvers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.table import Row, show
from farfield.data import load
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.numerics import streams
from farfield.sampling import Sampler, Teleport, karras, log_snr, spectral
from farfield.sampling.grids import Grid
from farfield.sampling.solvers import Whitened

BUDGETS = (5, 6, 8, 10, 14, 20)
TRAJECTORIES = 32
DATA = Path(os.environ.get("FARFIELD_CIFAR10", Path(__file__).parents[2] / "shared/data/cifar10_train.parquet"))


def diffusers_run(make: Callable[[], object], denoiser: Denoiser, x: Tensor, levels: Sequence[float]) -> Tensor:
    """A multistep scheduler of diffusers on our levels, in its own VP coordinates, fed with the exact denoiser.

    Some of its schedulers return NaN at σ = 0; they run down to the last positive level and the sample is the denoiser's
    output there, which costs the same evaluations.
    """
    scheduler = make()
    n = len(levels) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
    scheduler.timesteps = torch.arange(n, 0, -1)
    scheduler.set_begin_index(0)
    state = x / math.sqrt(1 + levels[0] ** 2)
    for k, t in enumerate(scheduler.timesteps):
        alpha = 1 / math.sqrt(1 + levels[k] ** 2)
        d = denoiser(state / alpha, levels[k])
        if k == n - 1:
            return d
        state = scheduler.step(d, t, state).prev_sample
    raise AssertionError("a grid has at least one level")


def peers() -> dict[str, Callable[[], object]]:
    from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    common = {"prediction_type": "sample"}
    return {
        "diffusers DPM-Solver++ 2": lambda: DPMSolverMultistepScheduler(**common, solver_order=2),
        "diffusers DPM-Solver++ 3": lambda: DPMSolverMultistepScheduler(**common, solver_order=3),
        "diffusers UniPC bh2 2": lambda: UniPCMultistepScheduler(**common, solver_order=2),
        "diffusers UniPC bh2 3": lambda: UniPCMultistepScheduler(**common, solver_order=3),
        "diffusers UniPC bh1 2": lambda: UniPCMultistepScheduler(**common, solver_order=2, solver_type="bh1"),
        "diffusers DEIS 2": lambda: DEISMultistepScheduler(**common, solver_order=2),
        "diffusers DEIS 3": lambda: DEISMultistepScheduler(**common, solver_order=3),
    }


@torch.no_grad()
def table(budgets: Sequence[int] = BUDGETS) -> dict[str, dict[int, tuple[float, str]]]:
    """Solver to budget to (root-mean-square end-point error, grid)."""
    images = load(str(DATA), size=16).images
    law = GaussianMixture.fit(images, components=30, seed=0)
    gaussian = Gaussian.fit(images)
    grids: dict[str, Callable[[int], Grid]] = {
        "ρ = 7": karras,
        "ρ = 12": lambda n: karras(n, rho=12),
        "log-SNR": log_snr,
        "spectral": lambda n: spectral(n, gaussian),
    }
    x = 80 * streams.normal(0, range(TRAJECTORIES), images.shape[1:])
    reference = Sampler(Whitened(3), karras(400), covariance=gaussian).run(law, x).x

    def error(y: Tensor) -> float:
        return float((y.double() - reference.double()).square().mean().sqrt())

    def sampler_row(build: Callable[[Grid], Sampler]) -> dict[int, tuple[float, str]]:
        row = {}
        for nfe in budgets:
            found = []
            for name, grid in grids.items():
                sampler = build(grid(max(2, nfe))).with_nfe(nfe)
                found.append((error(sampler.run(law, sampler.start.state(x / 80, 80.0, law.process)).x), name))
            row[nfe] = min(found)
        return row

    far = Teleport(gaussian, 20.0)
    out = {
        "euler": sampler_row(lambda g: Sampler("euler", g)),
        "heun": sampler_row(lambda g: Sampler("heun", g)),
        "dpmpp_2m": sampler_row(lambda g: Sampler("dpmpp_2m", g)),
        "teleport 20 + dpmpp_2m": sampler_row(lambda g: Sampler("dpmpp_2m", g, far)),
        "isotropic exponential 2": sampler_row(lambda g: Sampler(Whitened(2), g)),
        "whitened": sampler_row(lambda g: Sampler("whitened", g, covariance=gaussian)),
        "whitened 3": sampler_row(lambda g: Sampler(Whitened(3), g, covariance=gaussian)),
        "whitened, no corrector": sampler_row(
            lambda g: Sampler(Whitened(unit="data", corrector="start"), g, covariance=gaussian)
        ),
        "teleport 20 + whitened": sampler_row(lambda g: Sampler("whitened", g, far, covariance=gaussian)),
    }
    for name, make in peers().items():
        out[name] = {
            nfe: min((error(diffusers_run(make, law, x, list(g(nfe)))), k) for k, g in grids.items()) for nfe in budgets
        }
    return out


def run() -> list[Row]:
    if not DATA.is_file():
        print(f"skip  mixture end points: {DATA} is not there (set FARFIELD_CIFAR10)", flush=True)
        return []
    rows = table()
    width = max(map(len, rows))
    print(f"{'end-point error, best grid':<{width}}  " + "".join(f"{b:>20}" for b in BUDGETS))
    for name, row in rows.items():
        print(f"{name:<{width}}  " + "".join(f"{row[b][0]:>11.4f} {row[b][1]:>8}" for b in BUDGETS), flush=True)
    others = {n: r[10][0] for n, r in rows.items() if n in ("dpmpp_2m", "heun") or n.startswith("diffusers")}
    best = min(others, key=others.__getitem__)
    ratio = rows["whitened"][10][0] / others[best]
    return [Row("whitened at 10 evaluations, error against the best other", ratio, 1 / 3, f"× {best}")]


if __name__ == "__main__":
    show(run())
