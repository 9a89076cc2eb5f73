"""What a solver and its grid do to a Gaussian, component by component: exact, and without a network.

On a Gaussian the denoiser is affine and acts on each principal component alone, so a solver run with the variances as the
coordinates of a diagonal Gaussian *is* its multiplier: noise c becomes ``offset + m c``. The exact flow from σ_T has
``m = sqrt(λ/(λ + σ_T²))`` (Wang & Vastola 2024, Eq. 17). From starts of variance σ_T² the samples along a component are
normal with mean ``offset`` and standard deviation ``σ_T |m|``, against the target's mean μ_k and sqrt(λ):

    W₂² = (σ_T |m| − sqrt(λ))² + (offset − μ_k)²

(Gelbrich 1990), which adds up over the components. Even the exact flow does not reach 0, for pure noise is not the law at σ_T.
So grids, solvers and skips can be compared on a data set's spectrum at no evaluation of a network; what is not Gaussian in the
data is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.entrants import default_entrants, describe
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends
from farfield.analysis.tables import Table
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_modes import all_variances, multiplicities, psi
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import Prior, Sampler, Teleport
from farfield.sampling.starts import GaussianStart


@dataclass(frozen=True, eq=False)
class SolverAudit:
    """A sampler on a Gaussian; tensors run along the components, float64.

    Attributes:
        variances: λ.
        counts: how many directions have each, the tail's last.
        means: μ_k, the target's mean along each.
        multiplier: m, what a unit of starting noise in that component becomes, the start's own map included.
        exact: ``sqrt(λ/(λ + σ_T²))``.
        offset: where the noise 0 ends.
        w2, w2_exact: squared W₂ of the sampler's samples, and of the exact flow's from the same N(0, σ_T²), per direction.
        linear: whether twice the noise became twice the result, as with every fixed linear rule.
        sigma_max: σ_T.
        nfe: evaluations.
        sampler: as :func:`describe` writes it.
    """

    variances: Tensor
    counts: Tensor
    means: Tensor
    multiplier: Tensor
    exact: Tensor
    offset: Tensor
    w2: Tensor
    w2_exact: Tensor
    linear: bool
    sigma_max: float
    nfe: int
    sampler: dict[str, Any]

    @property
    def relative_error(self) -> Tensor:
        """``m/m_exact − 1``; 0 where both are 0, as along directions without variance."""
        ratio = self.multiplier / self.exact.clamp(min=torch.finfo(torch.float64).tiny) - 1
        return torch.where((self.exact == 0) & (self.multiplier.abs() < 1e-15), 0.0, ratio)

    @property
    def total_w2(self) -> float:
        """Squared W₂ between the sampler's samples and the law, all directions."""
        return float((self.w2 * self.counts).sum())

    @property
    def total_w2_exact(self) -> float:
        """The same of the exact flow: what only another start could remove."""
        return float((self.w2_exact * self.counts).sum())

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values. Errors relative to 0, along directions without variance, are None."""
        names = ("variances", "counts", "means", "multiplier", "exact", "offset", "w2", "w2_exact")
        relative = [
            r if e > 0 else None for r, e in zip(self.relative_error.tolist(), self.exact.tolist(), strict=True)
        ]
        return {
            **{name: getattr(self, name).tolist() for name in names},
            "relative_error": relative,
            "total_w2": self.total_w2,
            "total_w2_exact": self.total_w2_exact,
            "linear": self.linear,
            "sigma_max": self.sigma_max,
            "nfe": self.nfe,
            "sampler": self.sampler,
        }

    def summary(self) -> str:
        """The distance and the component that is worst."""
        k = int((self.w2 * self.counts).argmax())
        return (
            f"{self.nfe} evaluations on this spectrum end at squared W₂ = {self.total_w2:.3g} from the law, the exact flow "
            f"from the same noise at {self.total_w2_exact:.3g}. Most of it comes from variance {float(self.variances[k]):.3g}, "
            f"where the multiplier is off by {float(self.relative_error[k]):+.2%}."
        )

    def tables(self) -> list[Table]:
        """At most 24 components, evenly spaced in order of variance."""
        order = self.variances.argsort(descending=True).tolist()
        step = max(1, math.ceil(len(order) / 24))
        rows = tuple(
            (
                float(self.variances[k]), float(self.counts[k]), float(self.multiplier[k]), float(self.exact[k]),
                float(self.relative_error[k]), float(self.w2[k]), float(self.w2_exact[k]),
            )
            for k in order[::step]
        )  # fmt: skip
        columns = ("variance", "directions", "multiplier", "exact", "relative error", "W₂²", "W₂² of the exact flow")
        return [Table(f"{self.nfe} evaluations, W₂² = {self.total_w2:.4g}", columns, rows)]

    def plot(self, ax: Any = None) -> Any:
        """Relative error of the multiplier, and W₂² per direction, against the variance. Returns the figure."""
        left, right = axes_for(ax, 2, width=9.6, height=3.8)
        order = self.variances.argsort()
        order = order[self.variances[order] > 0]
        values = self.variances[order].tolist()
        for axes in (left, right):
            axes.set_xscale("log")
        left.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        left.plot(
            values, (100 * self.relative_error[order]).tolist(), ".-", color=PALETTE[0], linewidth=1.6, markersize=4
        )
        right.set_yscale("log")
        floor = 1e-18
        right.plot(
            values, self.w2[order].clamp(min=floor).tolist(), ".-", color=PALETTE[0], label="this sampler", markersize=4
        )
        curve = self.w2_exact[order].clamp(min=floor).tolist()
        right.plot(values, curve, color=PALETTE[1], linestyle=(0, (4, 2)), label="exact flow, same start")
        dress(left, "variance λ of the component", "error of the multiplier, %", "relative error at the end")
        dress(right, "variance λ of the component", "squared W₂ of a direction", "distance of the samples")
        right.legend(frameon=False, fontsize=8, labelcolor=INK)
        return left.figure


def diagonal_law(law: Gaussian) -> tuple[Gaussian, Tensor]:
    """A Gaussian in its own principal components: a diagonal one on (r,) or (r + 1,) coordinates, and their multiplicities.

    All directions of the tail are one coordinate. It stands for each of them, at the root mean square of their means.
    """
    spectrum, mean = law.spectrum, law.mean.double().flatten().unsqueeze(0)
    inside = spectrum.project(mean)
    means = inside[0]
    if spectrum.tail_dim:
        rest = (mean - spectrum.expand(inside)).square().sum() / spectrum.tail_dim
        means = torch.cat((means, rest.sqrt().reshape(1)))
    return Gaussian(means, Spectrum.diagonal(all_variances(spectrum))), multiplicities(spectrum)


def solver_audit(sampler: Sampler, law: Gaussian, believed: Gaussian | None = None) -> SolverAudit:
    """The exact multipliers of a sampler on a Gaussian.

    Gaussians that the sampler itself holds (a teleport's, the whitened solver's) are replaced: by the truth, or by what it is
    to believe.

    Args:
        sampler: how to sample; deterministic, starting from pure noise, a teleport or a late start.
        law: the target, of any spectrum; the run is on its principal components.
        believed: the sampler's idea of the law in the same components, e.g. with ``law.spectrum.truncate(8)`` values:
            a diagonal Gaussian on (r,) coordinates as :func:`diagonal_law` makes it.

    Raises:
        ArgumentError: for a sampler that adds noise or is guided, for other starts, or for a belief of another size.
    """
    truth, counts = diagonal_law(law)
    own = truth if believed is None else believed
    if own.event_shape != truth.event_shape:
        raise ArgumentError(f"believed has {own.dim} components; the law has {truth.dim}")
    start = sampler.start
    if sampler.noise is not None or sampler.guidance:
        raise ArgumentError("sampler: an audit is of deterministic runs without guidance; leave noise and guidance out")
    if isinstance(start, GaussianStart):
        start = replace(start, gaussian=own)
    elif not isinstance(start, Prior):
        raise ArgumentError(f"start = {start.name!r}; an audit starts from the prior, a teleport or a late start")
    plan = replace(sampler, start=start, covariance=None if sampler.covariance is None else own)
    top = plan.grid.levels[0]
    # Noise 0 gives the offset, 1 the multiplier, −2 tells whether the rule is linear.
    z = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, device=truth.mean.device).unsqueeze(1).expand(3, truth.dim)
    run = plan.run(truth, start.state(z.clone(), top, truth.process))
    offset, gain = run.x[0], run.x[1] - run.x[0]
    scale = gain.abs().max().clamp(min=1e-300)
    linear = bool(((run.x[2] - offset + 2 * gain).abs() <= 1e-9 * scale + 1e-12).all())
    variance, mean = truth.spectrum.values, truth.mean
    multiplier, exact = gain / top, psi(truth.spectrum.values, 0.0, top)
    root = variance.sqrt()
    return SolverAudit(
        variances=variance,
        counts=counts,
        means=mean,
        multiplier=multiplier,
        exact=exact,
        offset=offset,
        w2=(gain.abs() - root).square() + (offset - mean).square(),
        w2_exact=(top * exact - root).square() + (exact * mean).square(),
        linear=linear,
        sigma_max=top,
        nfe=run.nfe,
        sampler=describe(sampler),
    )


@dataclass(frozen=True, eq=False)
class AuditComparison:
    """Several samplers on one Gaussian.

    Attributes:
        audits: by name.
        variance: the total variance of the law, which W₂² compares with.
    """

    audits: dict[str, SolverAudit]
    variance: float

    @property
    def ranking(self) -> tuple[str, ...]:
        """The names, nearest to the law first; of equals the cheaper."""
        return tuple(sorted(self.audits, key=lambda name: (self.audits[name].total_w2, self.audits[name].nfe)))

    def to_dict(self) -> dict[str, Any]:
        """Totals of each, in order."""
        rows = [
            {"name": n, "nfe": a.nfe, "w2": a.total_w2, "linear": a.linear, "sampler": a.sampler}
            for n, a in ((n, self.audits[n]) for n in self.ranking)
        ]
        exact = next(iter(self.audits.values())).total_w2_exact
        return {"rows": rows, "variance": self.variance, "w2_exact": exact}

    def summary(self) -> str:
        """The best, and what the exact flow would reach."""
        best = self.audits[self.ranking[0]]
        return (
            f"On the data's Gaussian {self.ranking[0]!r} is nearest to the law: squared W₂ = {best.total_w2:.3g} after "
            f"{best.nfe} evaluations, of a total variance of {self.variance:.3g}. The exact flow from pure noise ends at "
            f"{best.total_w2_exact:.3g}."
        )

    def tables(self) -> list[Table]:
        """One row for each sampler, in order."""
        rows = tuple(
            (name, a.nfe, a.total_w2, float((a.relative_error.abs() * a.variances * a.counts).sum()) / self.variance)
            for name, a in ((name, self.audits[name]) for name in self.ranking)
        )
        columns = ("sampler", "NFE", "squared W₂", "|error| of the multiplier, mean by variance")
        return [Table("samplers on the data's Gaussian, without a network", columns, rows)]

    def plot(self, ax: Any = None) -> Any:
        """Relative error of the multiplier against the variance, one curve for each sampler. Returns the figure."""
        (axes,) = axes_for(ax, width=8.4, height=4.4)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-4)
        ends = []
        low, high = math.inf, 0.0
        for k, name in enumerate(self.ranking[: len(PALETTE)]):
            audit = self.audits[name]
            order = audit.variances.argsort()
            order = order[audit.variances[order] > 1e-9 * float(audit.variances.max())]
            values, curve = audit.variances[order].tolist(), audit.relative_error[order].tolist()
            axes.plot(values, curve, color=PALETTE[k], linewidth=1.8)
            ends.append((curve[-1], f"{name} ({audit.nfe})", PALETTE[k]))
            low, high = min(low, values[0]), max(high, values[-1])
        axes.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        if low < high:
            axes.set_xlim(low, high)
        dress(
            axes, "variance λ of the component", "relative error of the multiplier", "samplers on the data's Gaussian"
        )
        label_ends(axes, ends)
        return axes.figure


def compare_solvers(samplers: Mapping[str, Sampler], law: Gaussian) -> AuditComparison:
    """Audit several samplers on one law.

    Raises:
        ArgumentError: if there is none, or as :func:`solver_audit`.
    """
    if not samplers:
        raise ArgumentError("samplers is empty; expected at least one")
    return AuditComparison({name: solver_audit(s, law) for name, s in samplers.items()}, law.spectrum.trace)


def skip_audits(sampler: Sampler, law: Gaussian) -> dict[int, SolverAudit]:
    """The sampler with its first i levels replaced by a teleport along the law's flow, by i.

    Skip 0 is the sampler itself. On a Gaussian a teleport is exact, so the error falls with i; on other data it is the first
    part of the bargain, and the deviation from the Gaussian at σ_i the second.
    """
    levels = sampler.grid.levels
    found = {0: solver_audit(sampler, law)}
    for k in range(1, len(levels)):
        start = Teleport(law, levels[k], grid_policy="truncate")
        found[k] = solver_audit(replace(sampler, start=start), law)
    return found


@dataclass(frozen=True)
class AuditOptions:
    """Options of the analysis: the evaluations of each sampler."""

    nfe: int = 18


@analysis(
    "audit",
    about="what each solver does to the data's Gaussian, by component, without the network",
    options=AuditOptions,
)
def analyze_audit(subject: Subject, options: AuditOptions) -> AuditComparison:
    """:func:`compare_solvers` of the usual samplers on the Gaussian of a subject's data."""
    law = Gaussian.fit(subject.data, rank=None if subject.model.dim <= 1024 else 512)
    samplers = {e.name: e.sampler.with_nfe(options.nfe) for e in default_entrants(subject.model)}
    return compare_solvers(samplers, law)
