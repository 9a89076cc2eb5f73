"""Exact laws against the matrix products they cannot do without.

    python -m benchmarks.laws

All in float32 with 64 states in 3072 dimensions, on one CPU thread and on all. *Mixture*: 100 components of rank 128 with
image-like eigenvalues, at several noise levels. The products it needs are those with the means, with all bases side by side,
the lift back, and the weights with the means. Two loops over components: one over torch's ``LowRankMultivariateNormal`` in
float64, and one over Gaussians of this library, each with its log-density and its posterior mean. The latter costs no more
than 3 to 4 times the products, so that nothing can be 5 times faster at a level where every component matters; its row is for
the 18 levels of a sampling run together. *Gaussian*: 3072 eigenvectors against the two products with them. *Sweeps*: 20 noise
levels after one projection against one level with its projection. What is compared takes turns in the same process; a ratio
is the median over the turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import LowRankMultivariateNormal

from benchmarks.table import Row, show
from farfield.distributions import Gaussian, GaussianMixture
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import karras

DIM, BATCH, COMPONENTS, RANK, REPEATS = 3072, 64, 100, 128, 7
LEVELS = (0.1, 1.0, 3.0, 10.0, 80.0)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compared(ours: Callable[[], Any], other: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float, float]:
    """The median ratio of two calls that take turns, and the median time of each."""
    ours(), other()
    times = [(timed(ours), timed(other)) for _ in range(repeats)]
    a, b = zip(*times, strict=True)
    return statistics.median(x / y for x, y in times), statistics.median(a), statistics.median(b)


def parts() -> tuple[torch.Tensor, torch.Tensor, list[Spectrum]]:
    """Weights, means and covariances: means that differ in 20 directions by 0.25 rms, eigenvalues like k^-1.2."""
    generator = torch.Generator().manual_seed(0)
    spectra = []
    for _ in range(COMPONENTS):
        basis = torch.linalg.qr(torch.randn(DIM, RANK, generator=generator))[0]
        size = 30 * (0.5 + float(torch.rand(1, generator=generator)))
        spectra.append(Spectrum.low_rank(basis, size * torch.arange(1, RANK + 1).double() ** -1.2))
    latent = torch.randn(COMPONENTS, 20, generator=generator)
    means = latent @ torch.randn(20, DIM, generator=generator) * 0.25 / math.sqrt(20)
    return torch.rand(COMPONENTS, generator=generator) + 0.2, means, spectra


def textbook(
    x: torch.Tensor, sigma: float, weights: torch.Tensor, means: torch.Tensor, spectra: list[Spectrum]
) -> torch.Tensor:
    """The mixture's posterior mean by torch's own low-rank Gaussians, one after the other, in float64."""
    state, logits, each = x.double(), [], []
    for mean, spectrum in zip(means.double(), spectra, strict=True):
        assert spectrum.basis is not None
        basis, noise = spectrum.basis.double(), torch.full((DIM,), sigma**2, dtype=torch.float64)
        law = LowRankMultivariateNormal(mean, basis * spectrum.values.sqrt(), noise, validate_args=False)
        logits.append(law.log_prob(state))
        each.append(mean + ((state - mean) @ basis * (spectrum.values / (spectrum.values + sigma**2))) @ basis.T)
    w = (torch.stack(logits, 1) + weights.double().log()).softmax(1)
    return torch.einsum("bk,kbd->bd", w, torch.stack(each)).to(x.dtype)


class Loop:
    """The mixture as Gaussians of this library, one after the other."""

    def __init__(self, weights: torch.Tensor, means: torch.Tensor, spectra: list[Spectrum]) -> None:
        self.logs = (weights / weights.sum()).double().log()
        self.laws = [Gaussian(mean, spectrum) for mean, spectrum in zip(means, spectra, strict=True)]

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        logits = torch.stack([law.log_prob(x, sigma) for law in self.laws], 1) + self.logs
        w = logits.softmax(1).to(x.dtype)
        total = torch.zeros_like(x)
        for k, law in enumerate(self.laws):
            total += w[:, k : k + 1] * law(x, sigma)
        return total


def mixtures(name: str) -> list[Row]:
    weights, means, spectra = parts()
    law, loop = GaussianMixture(weights, means, spectra), Loop(weights, means, spectra)
    columns = law.stacked.narrow().flatten(0, 1).T.contiguous()
    generator = torch.Generator().manual_seed(1)
    w = torch.rand(BATCH, COMPONENTS, generator=generator)
    c = torch.randn(BATCH, COMPONENTS * RANK, generator=generator)
    rows = []
    for sigma in LEVELS:
        x = law.sample(BATCH, generator, sigma)

        def bare(x: torch.Tensor = x) -> None:
            x @ means.T
            x @ columns
            c @ columns.T
            w @ means

        ratio, ours, _ = compared(lambda x=x, s=sigma: law(x, s), bare)
        rows.append(Row(f"mixture, σ = {sigma:g}, {name}", ratio, 1.5, "× its matrix products", f"{ours:.3f} s"))
    grid = list(karras(18))[:18]
    states = [law.sample(BATCH, generator, sigma) for sigma in grid]
    ours, slow = 0.0, 0.0
    spread = []
    for x, sigma in zip(states, grid, strict=True):
        _, a, b = compared(lambda x=x, s=sigma: law(x, s), lambda x=x, s=sigma: loop(x, s), 1)
        ours, slow = ours + a, slow + b
        spread.append(b / a)
    detail = f"each {min(spread):.1f} to {max(spread):.1f} times faster"
    rows.append(Row(f"mixture at 18 levels, {name}", ours / slow, 1 / 3, "× a loop over this library's", detail))
    x = law.sample(BATCH, generator, 10.0)
    ratio, _, slow = compared(lambda: law(x, 10.0), lambda: textbook(x, 10.0, weights, means, spectra), 1)
    rows.append(Row(f"mixture, σ = 10, {name}", ratio, 0.2, "× a loop over torch's laws", f"loop {slow:.1f} s"))
    return rows + sweeps("mixture", law, law.sample(BATCH, generator, 1.0), name)


def sweeps(kind: str, law: Gaussian | GaussianMixture, x: torch.Tensor, name: str) -> list[Row]:
    """Densities at 20 levels at once, then responsibilities and the denoiser's coordinates at one after the other."""
    levels = torch.logspace(-2, 2, 20, dtype=torch.float64)

    def each(sigmas: list[float]) -> None:
        p = law.project(x)
        for sigma in sigmas:
            p.weights(sigma)
            p.coefficients(sigma)

    a, seconds, _ = compared(lambda: law.project(x).log_prob(levels[:, None]), lambda: law.project(x).log_prob(1.0), 5)
    b, others, _ = compared(lambda: each(levels.tolist()), lambda: each([1.0]), 5)
    return [
        Row(f"{kind}, log p at 20 levels, {name}", a, 3.0, "× one level", f"{seconds:.3f} s"),
        Row(f"{kind}, w and c at 20 levels, {name}", b, 3.0, "× one level", f"{others:.3f} s"),
    ]


def gaussians(name: str) -> list[Row]:
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    law = Gaussian(torch.zeros(DIM), Spectrum.low_rank(basis, 100 * torch.arange(1, DIM + 1).double() ** -1.3))
    x, c = torch.randn(2, BATCH, DIM, generator=generator)
    held = law.spectrum.basis
    assert held is not None
    ratio, ours, _ = compared(lambda: law(x, 1.0), lambda: (x @ held, c @ held.T), 31)
    row = Row(f"Gaussian, 3072 eigenvectors, {name}", ratio, 1.2, "× its two products", f"{1e3 * ours:.1f} ms")
    return [row, *sweeps("Gaussian", law, x, name)]


def run() -> list[Row]:
    threads = torch.get_num_threads()
    rows = []
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            name = f"{count} thread{'s' if count > 1 else ''}"
            rows += gaussians(name) + mixtures(name)
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    show(run())
