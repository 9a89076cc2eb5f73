"""The variance of the training target, and what a reference batch removes of it, noise level by noise level.

The target of denoising score matching at x = x₀ + σz is ``(x₀ − x)/σ²``; its conditional mean is the score, and around it

    V_DSM(σ) = E tr Cov(x₀ | x)/σ⁴ = mmse(σ)/σ⁴ = d/σ² − E‖∇ log p(x; σ)‖²

(Xu 2024, Eq. 3.3). The stable target replaces x₀ by its posterior mean over n reference points, the source among them: it
is the conditional expectation of the target given x and the unordered batch, so it is unbiased for every n, and

    V_STF(σ, n) = V_DSM(σ) − E Σ_k w̄_k ‖x_k − y‖²/σ⁴ ≤ V_DSM(σ).

As σ grows, three phases follow each other: *near*, where one point explains the state (normalised posterior entropy
H < 0.05) and references change nothing; *intermediate*; *far* (H > 0.95), where all targets are nearly equal and n
references remove all but 1/n. V_DSM itself says nothing about phases for a law with a density: it grows like d/σ² as
σ → 0. Hence the weighted curve ``λ V_DSM``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends, marker_line
from farfield.analysis.posteriors import Probes, draw_probes
from farfield.data.progress import track
from farfield.distributions import Empirical, Gaussian
from farfield.distributions.base import Distribution
from farfield.errors import ArgumentError
from farfield.numerics import streams

NEAR, FAR = 0.05, 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over probes and its standard error, along the noise levels; error 0 where it is a closed form."""

    mean: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TargetVariance:
    """Target variance by noise level.

    Attributes:
        sigmas: the noise levels, decreasing.
        dsm: V_DSM(σ).
        mmse: σ⁴ V_DSM, the mean square error of the best denoiser, summed over coordinates.
        stf: V_STF(σ, n) by n, as E‖target − score‖².
        stf_within: the same by total variance, V_DSM − E[spread inside the batch]/σ⁴: another estimator of one number.
        remaining: V_STF/V_DSM by n, from whichever of the two has the smaller error (in the near phase the second); 1 where
            V_DSM is 0 to machine precision.
        weighted: λ(σ) V_DSM(σ).
        entropy: of the posterior over the points, divided by ln N.
        ess: effective number of points behind a state.
        divergence: D(σ) = E D_f(p₀ ‖ p₀|t).
        constant: C(σ), the limit of n V_STF(σ, n) for i.i.d. references; they help once n exceeds C/V_DSM.
        dim: coordinates of a sample.
        points: N, the points that stand for the law; references are drawn from them.
        total: points that the data hold, None for a law given in closed form.
        probes, seed, replacement: number of states at each level, what names them, and how references were drawn.
    """

    sigmas: tuple[float, ...]
    dsm: Estimate
    mmse: Estimate
    stf: dict[int, Estimate]
    stf_within: dict[int, Estimate]
    remaining: dict[int, Estimate]
    weighted: Estimate
    entropy: Estimate
    ess: Estimate
    divergence: Estimate
    constant: Estimate
    dim: int
    points: int
    total: int | None
    probes: int
    seed: int
    replacement: bool

    @property
    def exact(self) -> bool:
        """Whether every point of the data was used; only the states are then a sample."""
        return self.total == self.points

    @property
    def near_until(self) -> float | None:
        """The σ where the near phase ends, H = 0.05; None if the levels do not reach it."""
        return self._crossing(NEAR)

    @property
    def far_from(self) -> float | None:
        """The σ where the far phase begins, H = 0.95; None if the levels do not reach it."""
        return self._crossing(FAR)

    @property
    def peak(self) -> float:
        """The level with the largest weighted variance λ V_DSM."""
        return self.sigmas[max(range(len(self.sigmas)), key=self.weighted.mean.__getitem__)]

    def phase(self, sigma: float) -> int:
        """1 near, 2 intermediate, 3 far, by the entropy interpolated at a level (held constant beyond the last ones)."""
        order = np.argsort(self.sigmas)
        logs, entropy = np.log(np.array(self.sigmas))[order], np.array(self.entropy.mean)[order]
        found = float(np.interp(math.log(sigma), logs, entropy))
        return 1 if found < NEAR else 3 if found > FAR else 2

    def bound(self, n: int) -> tuple[float, ...]:
        """``(V_DSM + √3 (d/σ²) √D)/(n − 1)``, the source's loose upper bound on V_STF (Xu 2024, theorem 2), n ≥ 2."""
        if n < 2:
            raise ArgumentError(f"n = {n}; the bound holds from 2 references")
        rows = zip(self.sigmas, self.dsm.mean, self.divergence.mean, strict=True)
        return tuple((v + math.sqrt(3 * max(f, 0.0)) * self.dim / s**2) / (n - 1) for s, v, f in rows)

    def _crossing(self, value: float) -> float | None:
        """Where H first reaches a value as σ grows, linear in ln σ."""
        s, h = self.sigmas[::-1], self.entropy.mean[::-1]
        for k in range(1, len(s)):
            if h[k - 1] < value <= h[k]:
                share = (value - h[k - 1]) / (h[k] - h[k - 1])
                return math.exp(math.log(s[k - 1]) + share * math.log(s[k] / s[k - 1]))
        return None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with the phases and the peak."""
        names = ("exact", "near_until", "far_from", "peak")
        fields = {k: _plain(v) for k, v in asdict(self).items()}
        return {**fields, **{name: getattr(self, name) for name in names}}

    def plot(self, ax: Any = None) -> Any:
        """Curves over their maxima with the phases shaded (left), share of the variance that n references leave (right).

        Args:
            ax: two axes, or None for a new figure.

        Returns:
            The figure.
        """
        left, right = axes_for(ax, 2, width=10.2, height=4.0)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlim(self.sigmas[-1], self.sigmas[0])
            self._shade(axes)
        curves = (
            ("λV", "λ V_DSM", self.weighted, "-"), ("V_DSM", "V_DSM", self.dsm, "--"),
            ("D", "D(σ)", self.divergence, ":"), ("H", "entropy H", self.entropy, "-."),
        )  # fmt: skip
        for k, (key, name, curve, style) in enumerate(curves):
            top = 1.0 if key == "H" else max(curve.mean) or 1.0
            shown = [v / top for v in curve.mean]
            left.plot(self.sigmas, shown, color=PALETTE[k], linewidth=2, linestyle=style, label=name)
        left.set_ylim(0, 1.08)
        left.legend(frameon=False, fontsize=9, labelcolor=INK)
        dress(left, "noise level σ", "divided by its maximum", "where targets vary")
        ends = []
        right.set_yscale("log")
        floor = 1.0
        # A batch of all points leaves nothing, which a logarithmic axis does not show.
        some = [(n, curve) for n, curve in sorted(self.remaining.items()) if max(curve.mean) > 1e-9]
        for k, (n, curve) in enumerate(some):
            colour = PALETTE[k % len(PALETTE)]
            rows = list(zip(curve.mean, curve.error, strict=True))
            right.fill_between(
                self.sigmas, [max(v - e, 1e-9) for v, e in rows], [v + e for v, e in rows], color=colour, alpha=0.18,
                linewidth=0,
            )  # fmt: skip
            shown = [max(v, 1e-9) for v in curve.mean]
            floor = min(floor, *shown)
            right.plot(self.sigmas, shown, color=colour, linewidth=2)
            ends.append((shown[0], f"n = {n:,}", colour))
        right.set_ylim(floor / 2, 1.6)
        if self.sigmas[-1] < self.peak < self.sigmas[0]:
            marker_line(right, self.peak, "peak of λ V_DSM")
        dress(right, "noise level σ", "V_STF / V_DSM", "what n references leave of it")
        label_ends(right, ends)
        return left.figure

    def _shade(self, axes: Any) -> None:
        low, high = self.near_until, self.far_from
        if low is not None:
            axes.axvspan(self.sigmas[-1], low, color=INK, alpha=0.07, linewidth=0)
        if high is not None:
            axes.axvspan(high, self.sigmas[0], color=INK, alpha=0.07, linewidth=0)


def _plain(value: Any) -> Any:
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _levels(points: Tensor, first: Probes, count: int = 21) -> tuple[float, ...]:
    """Levels over all three phases, uniform in ln σ: from a tenth of the median distance to the nearest other point, where
    one point explains the state, to four times the root mean square distance of two points, where all do."""
    flat = points.flatten(1)
    top = 4 * math.sqrt(2 * float(flat.var(0, correction=0).sum(dtype=torch.float64)))
    if not top > 0:
        raise ArgumentError("the data are one point repeated; give sigmas")
    nearest = first.squared.scatter(1, first.anchor.unsqueeze(1), torch.inf).amin(1).median().sqrt()
    low = min(max(float(nearest) / 10, top * 1e-4), top / 10)
    return tuple(top * (low / top) ** (k / (count - 1)) for k in range(count))


def _sums(
    part: Probes, sigma: float, sizes: Sequence[int], law: Distribution | None, event: tuple[int, ...]
) -> dict[str, Tensor]:
    """Per-probe statistics at one level in the units of the data squared, (B,) each."""
    w = part.weights(sigma)
    found = part.spread(w)
    own, trace = found.mean, found.trace
    if law is not None:
        x = part.states(sigma).view(-1, *event)
        trace = law.posterior_trace(x, sigma)
        own = law(x, sigma).flatten(1) - part.sources()
    rows = {"mmse": trace, "entropy": found.entropy, "ess": found.ess, "divergence": found.divergence}
    rows["constant"] = found.spread
    for n in sizes:
        if n == 1:  # one reference is the source itself: the ordinary target
            rows["stf 1"], rows["within 1"] = trace, torch.zeros_like(trace)
            continue
        held = part.reference_weights(w, n)
        shift = part.shift(held)
        rows[f"stf {n}"] = (shift - own).square().sum(1)
        rows[f"within {n}"] = part.trace(held, shift)
    return rows


def target_variance(
    source: Tensor | np.ndarray | Distribution,
    sigmas: Sequence[float] | None = None,
    references: Sequence[int] = (1, 16, 64, 256, 1024),
    *,
    points: int | None = 4096,
    probes: int = 256,
    replacement: bool = False,
    weight: Callable[[float], float] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TargetVariance:
    """Measure V_DSM, V_STF, D, the posterior's entropy and what follows from them.

    States are named by ``seed``: probe i has the same source, noise and references at every level, and the references of
    a smaller batch are among those of a larger one, so that curves are smooth and errors between them small. Memory is
    that of the points and of 16 MB blocks. For N points in d coordinates a level costs ``probes · N · d`` operations for each
    reference size.

    Args:
        source: a data set (N, *event), whose law is uniform on its points; or a law. A Gaussian's V_DSM is its closed
            form ``Σ λ/(λ + σ²)/σ²``, a mixture's its own formula averaged over the states; ``points`` draws of the law
            then serve as references and for entropy, ESS, D and C.
        sigmas: noise levels > 0; by default 21 over all three phases.
        references: sizes n ≥ 1 of the reference batch. Those above N are left out unless drawn with replacement.
        points: at most this many points of the data, a random choice; None for all.
        probes: noised points at each level, ≥ 2.
        replacement: references i.i.d. instead of a batch without repetition (the source is in it either way).
        weight: λ(σ) of the loss ``λ ‖score error‖²``; σ² by default.
        seed: of the choice of points, the states and the references.
        progress: show a bar on the standard error where a person watches it.

    Raises:
        ArgumentError: for an argument out of range, fewer than two points, or a law with another kernel than a Gaussian.
    """
    law, cloud, total = _cloud(source, points, seed)
    levels = None if sigmas is None else tuple(sorted(map(float, sigmas), reverse=True))
    if levels is not None and not (levels and levels[-1] > 0 and math.isfinite(levels[0])):
        raise ArgumentError(f"sigmas = {list(levels)}; expected positive noise levels")
    if not references or min(references) < 1:
        raise ArgumentError(f"references = {list(references)}; expected sizes of at least 1")
    if probes < 2:
        raise ArgumentError(f"probes = {probes}; expected at least 2")
    sizes = sorted({int(n) for n in references if replacement or n <= len(cloud)})
    event = tuple(cloud.shape[1:])
    collected: dict[tuple[int, str], list[Tensor]] = {}
    with torch.no_grad():
        chunks = draw_probes(cloud, probes, max(sizes, default=1), replacement, seed)
        first = next(chunks)
        levels = _levels(cloud, first) if levels is None else levels
        steps = -(-probes // len(first.anchor)) * len(levels)

        def work() -> Any:
            part: Probes | None = first
            while part is not None:
                for k, sigma in enumerate(levels):
                    yield part, k, sigma
                part = next(chunks, None)

        for part, k, sigma in track(work(), steps, "target variance", threshold=1 if progress else steps + 1):
            for name, row in _sums(part, sigma, sizes, law, event).items():
                collected.setdefault((k, name), []).append(row.cpu())
    rows = [{name: torch.cat(v) for (i, name), v in collected.items() if i == k} for k in range(len(levels))]
    facts = {
        "dim": math.prod(event), "points": len(cloud), "total": total, "probes": probes, "seed": seed,
        "replacement": replacement,
    }  # fmt: skip
    lam = weight if weight is not None else lambda s: s * s
    return _summary(levels, rows, sizes, lam, isinstance(law, Gaussian), facts)


def _cloud(
    source: Tensor | np.ndarray | Distribution, points: int | None, seed: int
) -> tuple[Distribution | None, Tensor, int | None]:
    """The law if it is more than a set of points, the points (N, *event), and how many the data hold."""
    if points is not None and points < 2:
        raise ArgumentError(f"points = {points}; expected at least 2, or None for all")
    if isinstance(source, Distribution):
        if not source.process.gaussian:
            raise ArgumentError(f"the law's process is {source.process!r}; expected Gaussian diffusion")
        if not isinstance(source, Empirical):
            generator = torch.Generator().manual_seed(streams.derive(seed, "target points") >> 1)
            return source, source.sample(4096 if points is None else points, generator), None
        source = source.data
    data = torch.as_tensor(source).detach()
    if data.ndim < 2 or len(data) < 2 or not data.dtype.is_floating_point:
        raise ArgumentError(
            f"source is {data.dtype} of shape {tuple(data.shape)}; expected floating (N, *event), N >= 2"
        )
    total = len(data)
    if points is not None and points < total:
        data = data[streams.permutation(seed, total, purpose="target points")[:points].to(data.device)]
    return None, data, total


def _summary(
    levels: tuple[float, ...],
    rows: list[dict[str, Tensor]],
    sizes: list[int],
    weight: Callable[[float], float],
    closed: bool,
    facts: dict[str, Any],
) -> TargetVariance:
    def estimate(
        value: Callable[[dict[str, Tensor]], Tensor], scale: Callable[[float], float] = lambda s: 1.0
    ) -> Estimate:
        means, errors = [], []
        for sigma, row in zip(levels, rows, strict=True):
            v = value(row)
            means.append(float(v.mean()) * scale(sigma))
            errors.append(float(v.std()) / math.sqrt(len(v)) * scale(sigma))
        return Estimate(tuple(means), tuple(errors))

    def known(scale: Callable[[float], float]) -> Estimate:
        found = estimate(lambda row: row["mmse"], scale)
        return Estimate(found.mean, (0.0,) * len(levels)) if closed else found

    def ratio(n: int) -> Estimate:
        means, errors = [], []
        for row in rows:
            whole = row["mmse"]
            base, flat = float(whole.mean()), whole.mean() if closed else whole
            if not base > 0:
                means.append(1.0)
                errors.append(0.0)
                continue
            found = []
            for part in (row[f"stf {n}"], whole - row[f"within {n}"]):
                share = float(part.mean()) / base
                found.append((float((part - share * flat).std()) / (base * math.sqrt(len(part))), share))
            # In the near phase few states carry all variance, and the ratio of two rare events needs them in both.
            error, share = found[1] if float(row["entropy"].mean()) < NEAR else min(found)
            means.append(share)
            errors.append(error)
        return Estimate(tuple(means), tuple(errors))

    def quartic(s: float) -> float:
        return s**-4

    return TargetVariance(
        sigmas=levels,
        dsm=known(quartic),
        mmse=known(lambda s: 1.0),
        stf={n: estimate(lambda row, n=n: row[f"stf {n}"], quartic) for n in sizes},  # type: ignore[misc]
        stf_within={n: estimate(lambda row, n=n: row["mmse"] - row[f"within {n}"], quartic) for n in sizes},  # type: ignore[misc]
        remaining={n: ratio(n) for n in sizes},
        weighted=known(lambda s: weight(s) * s**-4),
        entropy=estimate(lambda row: row["entropy"]),
        ess=estimate(lambda row: row["ess"]),
        divergence=estimate(lambda row: row["divergence"]),
        constant=estimate(lambda row: row["constant"], quartic),
        **facts,
    )
