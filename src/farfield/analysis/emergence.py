"""When the principal components of the data are decided: in closed form for the Gaussian, and measured on a model.

A component of variance λ has the noise-to-signal ratio ``z = σ/sqrt(λ)`` (under a schedule, s/(α sqrt(λ))). Two curves fall
with z, and a critical level belongs to each (Wang & Vastola 2024, section 3.3; which point is half-way is a definition):

    shrinkage    1/(1 + z²)        half at z = 1, from 10 to 90 % in z ∈ [3, 1/3], steepest in ln σ at z = 1
    trajectory   1/sqrt(1 + z²)    half at z = √3, from 10 to 90 % in z ∈ [9.95, 0.484], steepest in ln σ at z = √2

The first is the weight of a noisy coefficient in the denoiser's answer, the second the answer itself along a sampling
trajectory, over its final value. Its square, which is the first, is the committed part of the component's variance:
``V(σ) = Σ λ/(1 + z²) / Σ λ``.

*On a model*, at data points plus noise, with a the coefficient of the noisy point and b that of the denoiser's answer:

    slope        Cov(a, b)/Var(a)     of the linear regression
    committed    Var(b)/Var(clean coefficient)
    linear       Cov(a, b)²/(Var(a) Var(b))

The exact denoiser of *any* data has slope λ/(λ + σ²), for E[b | a] and the clean coefficient have the same covariance with a:
a slope beside the curve is an error of the model. What is not Gaussian shows in the other two: a component that is decided
by more than its own noisy coefficient is committed earlier than the Gaussian's, and its relation is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.emergence_plot import draw
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_modes import principal_components, shrinkage
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.sampling import Grid, karras
from farfield.sampling.grids import as_grid

Definition = Literal["shrinkage", "trajectory"]

#: z at which each curve is at one half, at 90 % and at 10 %.
POINTS: dict[str, tuple[float, float, float]] = {
    "shrinkage": (1.0, 1 / 3, 3.0),
    "trajectory": (math.sqrt(3), math.sqrt(1 / 0.81 - 1), math.sqrt(99)),
}


_PLAIN = ("definition", "sigmas", "shrinkage", "committed", "half", "grid", "grid_committed", "grid_shrinkage")


@dataclass(frozen=True)
class Component:
    """A principal component and when it emerges.

    Attributes:
        number: from 1, in order of variance, which is the order of emergence.
        variance, share: λ, and its part of the total.
        critical: the σ at which the curve of the chosen definition is at one half.
        settled, begins: the σ at which it is at 90 % and at 10 %.
        alpha: the signal scale of a variance-preserving process at ``critical``; ``1/sqrt(1 + λ)`` for the shrinkage.
        step: the step k of the grid, σ_k ≥ critical > σ_{k+1}; −1 above the grid.
    """

    number: int
    variance: float
    share: float
    critical: float
    settled: float
    begins: float
    alpha: float
    step: int


@dataclass(frozen=True)
class Measured:
    """What a model does with one component; every tuple runs along the levels of the analysis."""

    slope: tuple[float, ...]
    slope_error: tuple[float, ...]
    committed: tuple[float, ...]
    linear: tuple[float, ...]
    critical: float | None


@dataclass(frozen=True, eq=False)
class Emergence:
    """The order and the levels at which principal components are decided.

    Attributes:
        definition: of ``critical``, ``settled`` and ``begins``; see the head of this module.
        components: in order of emergence.
        sigmas: levels of the curves, decreasing.
        shrinkage: λ/(λ + σ²) for each component, along ``sigmas``.
        committed: V(σ) of the whole law, along ``sigmas``.
        half: the σ at which half of the total variance is committed, None if that is outside ``sigmas``.
        grid: the levels of the sampler that ``step`` counts.
        grid_committed: V(σ) at each of them.
        grid_shrinkage: λ/(λ + σ²) of each component, at each of them.
        measured: of a model, one for each component; None where no model was measured.
        queries, seed: of the measurement.
        vectors: (k, *event) the components, for pictures.
    """

    definition: Definition
    components: tuple[Component, ...]
    sigmas: tuple[float, ...]
    shrinkage: tuple[tuple[float, ...], ...]
    committed: tuple[float, ...]
    half: float | None
    grid: tuple[float, ...]
    grid_committed: tuple[float, ...]
    grid_shrinkage: tuple[tuple[float, ...], ...]
    measured: tuple[Measured, ...] | None
    queries: int
    seed: int
    vectors: Tensor

    @property
    def departure(self) -> tuple[int, float, float, float] | None:
        """The largest |slope − λ/(λ + σ²)| of the measurement: component, σ, signed difference, and its error."""
        if self.measured is None:
            return None
        rows = [
            (c.number, s, m.slope[k] - self.shrinkage[i][k], m.slope_error[k])
            for i, (c, m) in enumerate(zip(self.components, self.measured, strict=True))
            for k, s in enumerate(self.sigmas)
        ]
        return max(rows, key=lambda row: abs(row[2]))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; the components' pictures too."""
        value = {k: getattr(self, k) for k in _PLAIN}
        value["components"] = [asdict(c) for c in self.components]
        value["measured"] = None if self.measured is None else [asdict(m) for m in self.measured]
        value["departure"] = self.departure
        return value | {"queries": self.queries, "seed": self.seed, "vectors": self.vectors.float().tolist()}

    def summary(self) -> str:
        """First and last component, half of the variance, and the model's largest departure."""
        first, last = self.components[0], self.components[-1]
        text = (
            f"Component 1, {first.share:.0%} of the variance, is decided at σ = {first.critical:.3g} (half-way by "
            f"{self.definition}), component {last.number} at {last.critical:.3g}"
        )
        if self.half is not None:
            text += f"; half of the total variance is committed at σ = {self.half:.3g}"
        if self.departure is not None:
            number, sigma, gap, error = self.departure
            text += (
                f". The model's shrinkage departs most from λ/(λ + σ²) on component {number} at σ = {sigma:.3g}, by "
                f"{gap:+.3f} ± {error:.3f}"
            )
        return text + "."

    def tables(self) -> list[Table]:
        """The components; and the model's answer beside the Gaussian's where one was measured."""
        columns = ("component", "variance", "share", "critical σ", "from 10 % at σ", "to 90 % at σ", "VP α", "step")
        rows = tuple(
            (c.number, c.variance, c.share, c.critical, c.begins, c.settled, c.alpha, c.step) for c in self.components
        )
        found = [Table(f"order of emergence, half-way by {self.definition}", columns, rows)]
        steps = tuple(
            (k, s, self.grid_committed[k], sum(c.critical > s for c in self.components))
            for k, s in enumerate(self.grid)
        )
        title = f"the sampler's steps; {len(self.components)} components are followed"
        found.append(Table(title, ("step", "σ", "committed variance", "components decided"), steps))
        if self.measured is not None:
            names = ("component", "σ", "λ/(λ + σ²)", "model's slope", "± error", "model's committed", "linear")
            shown = [
                (c.number, s, self.shrinkage[i][k], m.slope[k], m.slope_error[k], m.committed[k], m.linear[k])
                for i, (c, m) in enumerate(zip(self.components, self.measured, strict=True))
                for k, s in enumerate(self.sigmas)
                if i < 3
            ]
            found.append(Table(f"the model along the first components, {self.queries} queries", names, tuple(shown)))
        return found

    def plot(self, ax: Any = None) -> Any:
        """Committed fraction against σ, and pictures of the components in order of emergence. Returns the figure.

        Args:
            ax: two axes, or None for a new figure.
        """
        return draw(self, ax)


def committed_variance(law: Gaussian, sigmas: Sequence[float] | Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """``V = Σ_k λ_k/(1 + z_k²) / Σ_k λ_k`` at each level, (L,) in float64; the tail counts.

    Args:
        law: the Gaussian; its covariance is not zero.
        sigmas: noise scales s.
        alpha: signal scales, a number or (L,).
    """
    spectrum = law.spectrum
    std = torch.as_tensor(sigmas, dtype=torch.float64, device=spectrum.values.device).unsqueeze(-1)
    a = alpha.to(std).unsqueeze(-1) if isinstance(alpha, Tensor) else alpha
    total = (shrinkage(spectrum.values, std, a) * spectrum.values).sum(-1)
    if spectrum.tail_dim and spectrum.tail:
        total = total + (spectrum.tail_dim * spectrum.tail) * shrinkage(spectrum.tail, std, a).squeeze(-1)
    return total / spectrum.trace


def _crossing(sigmas: Sequence[float], values: Sequence[float], level: float = 0.5) -> float | None:
    """The highest σ at which a curve along decreasing levels first rises through ``level``, linear in ln σ."""
    if values[0] >= level:
        return None
    for k in range(1, len(values)):
        if values[k] >= level:
            part = (level - values[k - 1]) / (values[k] - values[k - 1])
            a, b = math.log(sigmas[k - 1]), math.log(sigmas[k])
            return math.exp(a + part * (b - a))
    return None


def _levels(law: Gaussian, sigmas: Sequence[float] | None, low: float, high: float, count: int) -> tuple[float, ...]:
    if sigmas is not None:
        given = tuple(sorted(map(float, sigmas), reverse=True))
        if len(given) < 2 or not given[-1] > 0:
            raise ArgumentError(f"sigmas = {list(given)}; expected at least two positive noise levels")
        return given
    top = min(high, 10 * math.sqrt(float(law.spectrum.values.max())))
    top = max(top, 10 * low)
    return tuple(top * (low / top) ** (k / (count - 1)) for k in range(count))


def emergence(
    law: Gaussian,
    *,
    components: int = 12,
    sigmas: Sequence[float] | None = None,
    definition: Definition = "shrinkage",
    grid: Grid | Sequence[float] | None = None,
) -> Emergence:
    """The closed form: when each principal component of a Gaussian is decided.

    Args:
        law: the data's Gaussian.
        components: how many, from the largest variance on; those of variance 0 are never decided and left out.
        sigmas: levels of the curves; by default 40, from far above the first component's to 0.002.
        definition: of the critical level and the range, ``"shrinkage"`` or ``"trajectory"``.
        grid: the sampler's levels that steps are counted on; by default 18 Karras levels.

    Raises:
        ArgumentError: for an unknown definition, no positive levels, or a law without components.
    """
    if definition not in POINTS:
        raise ArgumentError(f"definition = {definition!r}; expected 'shrinkage' or 'trajectory'")
    levels = _levels(law, sigmas, 0.002, 80.0, 40)
    nodes = as_grid(grid if grid is not None else karras(18)).levels
    variances, vectors = principal_components(law, components)
    keep = variances > 0
    variances, vectors = variances[keep], vectors[keep]
    if not len(variances):
        raise ArgumentError("the covariance is zero: it has no components that could be decided")
    # Eigenvectors have no sign; the brighter one is shown.
    vectors = torch.where((vectors.flatten(1).sum(1) < 0).view(-1, *(1,) * (vectors.ndim - 1)), -vectors, vectors)
    centre, late, early = POINTS[definition]
    found = []
    for k, variance in enumerate(variances.tolist()):
        scale = math.sqrt(variance)
        critical = centre * scale
        step = sum(s >= critical for s in nodes) - 1
        alpha = 1 / math.sqrt(1 + critical**2)
        share = variance / law.spectrum.trace
        found.append(Component(k + 1, variance, share, critical, late * scale, early * scale, alpha, step))
    std = torch.tensor(levels, dtype=torch.float64, device=variances.device)
    committed = tuple(committed_variance(law, std).tolist())
    at_nodes = torch.tensor(nodes, dtype=torch.float64, device=variances.device)
    return Emergence(
        definition=definition,
        components=tuple(found),
        sigmas=levels,
        shrinkage=tuple(map(tuple, shrinkage(variances[:, None], std).tolist())),
        committed=committed,
        half=_crossing(levels, committed),
        grid=nodes,
        grid_committed=tuple(committed_variance(law, nodes).tolist()),
        grid_shrinkage=tuple(map(tuple, shrinkage(variances[:, None], at_nodes).tolist())),
        measured=None,
        queries=0,
        seed=0,
        vectors=vectors.cpu(),
    )


def measure_emergence(
    denoiser: Denoiser,
    data: Tensor,
    found: Emergence,
    mean: Tensor,
    *,
    queries: int = 512,
    seed: int = 0,
    batch_size: int = 512,
) -> Emergence:
    """The same analysis with a model measured along its components and levels.

    Query i is the same data point and the same noise at every level and for every batch size.

    Args:
        denoiser: the model.
        data: (N, *event), from which noised queries are made.
        found: the closed form, whose components and levels are used.
        mean: of the law, (*event).
        queries: query points at each level, ≥ 8.
        seed: names them.
        batch_size: queries evaluated at once.

    Raises:
        ArgumentError: for shapes that do not fit or an argument out of range.
    """
    if tuple(data.shape[1:]) != denoiser.event_shape or not len(data):
        raise ArgumentError(f"data has shape {tuple(data.shape)}; the model takes events {denoiser.event_shape}")
    if queries < 8 or batch_size < 1:
        raise ArgumentError(f"queries = {queries}, batch_size = {batch_size}; expected at least 8 and 1")
    ids = torch.arange(queries)
    place = streams.uniform(seed, ids, purpose="emergence point", dtype=torch.float64)
    rows = (place * len(data)).long().clamp_(max=len(data) - 1)
    clean = data[rows.to(data.device)]
    z = streams.normal(seed, ids, denoiser.event_shape, purpose="emergence noise", dtype=clean.dtype).to(data.device)
    vectors = found.vectors.to(data.device).flatten(1).double()
    centre = mean.to(data.device).double().flatten()
    # Of the queries' own points: then the committed part tends to 1 exactly, whichever points were drawn.
    variances = ((clean.flatten(1).double() - centre) @ vectors.T).var(0)
    curves = []
    with torch.no_grad():
        for sigma in found.sigmas:
            x = clean + sigma * z
            answer = torch.cat([denoiser(part, sigma) for part in x.split(batch_size)])
            a = (x.flatten(1).double() - centre) @ vectors.T
            b = (answer.flatten(1).double() - centre) @ vectors.T
            curves.append(_regression(a, b, variances))
    table = torch.stack(curves).permute(2, 1, 0).cpu()  # (components, quantities, levels)
    measured = []
    for part in table.tolist():
        slope, error, committed, linear = part
        half = _crossing(found.sigmas, committed)
        measured.append(Measured(tuple(slope), tuple(error), tuple(committed), tuple(linear), half))
    return replace(found, measured=tuple(measured), queries=queries, seed=seed)


def _regression(a: Tensor, b: Tensor, variances: Tensor) -> Tensor:
    """Slope, its error (White 1980: no equal variances needed), committed part and squared correlation: (4, k)."""
    n = len(a)
    a, b = a - a.mean(0), b - b.mean(0)
    power, own, both = a.square().sum(0), b.square().sum(0), (a * b).sum(0)
    slope = both / power
    error = ((b - slope * a) * a).square().sum(0).sqrt() / power
    tiny = torch.finfo(torch.float64).tiny
    committed = own / (n - 1) / variances.clamp(min=tiny)
    return torch.stack((slope, error, committed, both.square() / (power * own).clamp(min=tiny)))


@dataclass(frozen=True)
class EmergenceOptions:
    """Options of the analysis; see :func:`emergence` and :func:`measure_emergence`."""

    components: int = 12
    sigmas: tuple[float, ...] | None = None
    queries: int = 512
    definition: Definition = "shrinkage"
    steps: int = 18


@analysis("emergence", about="at which noise level each principal component is decided", options=EmergenceOptions)
def analyze_emergence(subject: Subject, options: EmergenceOptions) -> Emergence:
    """The closed form of the data's Gaussian, with the model measured beside it."""
    model, data = subject.model, subject.data
    low, high = max(0.002, model.sigma_min), min(80.0, model.sigma_max)
    law = Gaussian.fit(data, rank=None if model.dim <= 1024 else 512)
    found = emergence(
        law,
        components=options.components,
        sigmas=_levels(law, options.sigmas, max(low, 0.01), high, 16),
        definition=options.definition,
        grid=karras(options.steps, low, high),
    )
    return measure_emergence(model, data, found, law.mean, queries=options.queries, seed=subject.seed)
