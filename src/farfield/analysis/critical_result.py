"""What :func:`critical_times` returns: crossings, each with its direction, and their table, plot and plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.critical_branches import Sides, Split
from farfield.analysis.critical_field import Dynamics
from farfield.analysis.images import is_image
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends, marker_line
from farfield.analysis.tables import Table
from farfield.processes import TimeMap

Kind = Literal["modes", "branches", "spread", "unchecked"]

_ABOUT: dict[Kind, str] = {
    "modes": "a choice between modes",
    "branches": "spread, no choice between modes: the dynamics branches, but the density does not split",
    "spread": "spread, no choice between modes: the dynamics of a wide law runs away",
    "unchecked": "not checked",
}


@dataclass(frozen=True, eq=False)
class Crossing:
    """The central state loses its stability along one direction, or a second stable state is born beside it.

    Attributes:
        order: number of the direction, from 0, by falling eigenvalue.
        direction: (*event), of unit length: an image one can look at.
        centre: (*event), the variance-exploding state that loses its stability.
        sigma: noise level of the variance-exploding state.
        time, generative_time: forward time s of the process, and ``t = t_max − s``.
        theta: signal scale α(s).
        index: first 0-based index of the discrete schedule with ``θ_i < θ``; None beyond its end.
        error: of σ, one standard deviation, from ``errors``: what the bracket, the eigenvalue, the centre, the noise draws and
            the selection of a direction by these draws leave open. It does not know how well a network was trained.
        slope: ``d log(μ/κ)/d log σ`` at the crossing.
        variance: posterior variance along the direction, ``μ σ²``; ``sinh B`` at a crossing of a variance-preserving SDE.
        tilt: push of the dynamics along the direction, in posterior standard deviations; 0 where the law is symmetric.
        skew: ``‖(J − Jᵀ) v‖/2μ``, how far a network's Jacobian is from that of a law; 0 for a law.
        fold: the centre stays stable, and a second stable state is born beside it, from ``centre`` along ``direction``.
        branches: stable states found beside the centre just below the crossing, 0 to 2; None where not checked.
        runaway: whether the drift never turns back on a side.
        offsets: their distances from the centre along the direction.
        sides: (2, *event), those states.
        bistable_sigma: the level from which both are stable; the crossing itself where the law is symmetric.
        modes_sigma: where the noisy density splits along the direction, or None down to ``modes_floor``, where the posterior
            variance has halved.
    """

    order: int
    direction: Tensor
    centre: Tensor
    sigma: float
    time: float
    generative_time: float
    theta: float
    index: int | None
    error: float
    errors: dict[str, float]
    slope: float
    variance: float
    tilt: float
    skew: float
    fold: bool = False
    branches: int | None = None
    runaway: bool | None = None
    offsets: tuple[float | None, float | None] = (None, None)
    sides: Tensor | None = None
    bistable_sigma: float | None = None
    modes_sigma: float | None = None
    modes_floor: float | None = None

    @property
    def kind(self) -> Kind:
        """What the crossing leads to: modes of the density, branches of the drift alone, spread, or not checked."""
        if self.branches is None:
            return "unchecked"
        if self.runaway or (self.branches == 0 and self.bistable_sigma is None):
            return "spread"
        return "branches" if self.modes_sigma is None else "modes"

    @property
    def about(self) -> str:
        """``kind`` in words."""
        return _ABOUT[self.kind]

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio ``1/σ²`` of unit variance data."""
        return self.sigma**-2

    @property
    def time_error(self) -> float:
        """The error of σ in units of σ: relative."""
        return self.error / self.sigma

    def with_check(self, sides: Sides, bistable: float | None, split: Split) -> Crossing:
        """The crossing with what it leads to."""
        offsets = [None if math.isnan(o) else o for o in sides.offsets]
        return replace(
            self,
            branches=sides.stable,
            runaway="runaway" in sides.kinds,
            offsets=(offsets[0], offsets[1]),
            sides=sides.states.detach().cpu(),
            bistable_sigma=bistable,
            modes_sigma=split.sigma,
            modes_floor=split.floor,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with ``kind``; tensors as nested lists."""
        record = {name: value for name, value in self.__dict__.items() if not isinstance(value, Tensor)}
        record |= {name: value.tolist() for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        return {**record, "offsets": list(self.offsets), "kind": self.kind, "snr": self.snr}


@dataclass(frozen=True)
class Visit:
    """A level that the search has looked at: eigenvalue number ``order`` over κ, ``fine`` where all draws were used."""

    sigma: float
    order: int
    ratio: float
    fine: bool


@dataclass(frozen=True, eq=False)
class CriticalTimes:
    """The instabilities of the central state, from high noise down.

    Attributes:
        dynamics: whose stability.
        process: the time map.
        crossings: in the order of their eigenvalues.
        unstable_at_start: directions that are unstable at the highest noise already: no symmetric phase within the horizon.
        sigma_max, sigma_min: the horizon.
        examined: directions examined.
        noise, tolerance, seed: as given.
        evaluations, products: states denoised, and Jacobian products at a state, in all.
        history: the levels visited.
    """

    dynamics: Dynamics
    process: TimeMap
    crossings: tuple[Crossing, ...]
    unstable_at_start: int
    sigma_max: float
    sigma_min: float
    examined: int
    noise: int
    tolerance: float
    seed: int
    evaluations: int
    products: int
    history: tuple[Visit, ...] = field(repr=False, default=())

    @property
    def first(self) -> Crossing | None:
        """The first symmetry breaking, or None."""
        return self.crossings[0] if self.crossings else None

    @property
    def symmetric_phase(self) -> bool:
        """Whether the centre is stable at the highest noise."""
        return self.unstable_at_start == 0

    def summary(self) -> str:
        """The first crossing, and what it leads to."""
        name = {"sde": "reverse SDE", "ode": "probability-flow ODE", "langevin": "density"}[self.dynamics]
        if not self.symmetric_phase:
            return (
                f"{name}: {self.unstable_at_start} of {self.examined} directions are unstable at σ = {self.sigma_max:.4g} "
                "already; there is no symmetric phase within this horizon."
            )
        first = self.first
        if first is None:
            return f"{name}: the centre is stable from σ = {self.sigma_max:.4g} down to {self.sigma_min:.4g}."
        text = (
            f"{name}: first instability at σ = {first.sigma:.5g} ± {first.error:.1g}, s = {first.time:.5g}, "
            f"θ = {first.theta:.5g}"
        )
        text += "" if first.index is None else f", index {first.index}"
        text += f": {first.about}." if first.kind != "unchecked" else "."
        if abs(first.tilt) > 0.01 and first.bistable_sigma is not None:
            text += (
                f" The law is not symmetric along it; both sides are stable from σ = {first.bistable_sigma:.4g} down."
            )
        if first.skew > 0.1:
            text += (
                f" The Jacobian there is {100 * first.skew:.0f} % antisymmetric: this state is foreign to the model; "
                "average over noise (noise=16)."
            )
        return text

    def tables(self, name: str = "") -> list[Table]:
        """The crossings; ``name`` says whose they are."""
        columns = (
            "direction",
            "σ",
            "± σ",
            "s",
            "t",
            "θ",
            "index",
            "variance",
            "tilt",
            "leads to",
            "both from σ",
            "modes from σ",
        )
        rows = tuple(
            (
                c.order + 1, c.sigma, c.error, c.time, c.generative_time, c.theta, c.index, c.variance, c.tilt, c.kind,
                c.bistable_sigma, c.modes_sigma,
            )
            for c in self.crossings
        )  # fmt: skip
        return [Table(f"{name + ': ' if name else ''}critical times, {self.dynamics}", columns, rows)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        process = {"name": type(self.process).__name__}
        if hasattr(self.process, "__dataclass_fields__"):
            process |= asdict(self.process)  # type: ignore[call-overload]
        return {
            "dynamics": self.dynamics,
            "process": process,
            "crossings": [c.to_dict() for c in self.crossings],
            "unstable_at_start": self.unstable_at_start,
            "sigma_max": self.sigma_max,
            "sigma_min": self.sigma_min,
            "examined": self.examined,
            "noise": self.noise,
            "tolerance": self.tolerance,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "products": self.products,
            "history": [asdict(visit) for visit in self.history],
        }

    def plot(self, ax: Any = None) -> Any:
        """Eigenvalues over κ by noise level, with the crossings; beside it the first direction where it is an image."""
        image = self.first is not None and is_image(tuple(self.first.direction.shape))
        panels = axes_for(ax, 2 if image else 1, width=9.6 if image else 7.2)
        label_ends(panels[0], draw_ratios(panels[0], self))
        if image and len(panels) > 1 and self.first is not None:
            draw_direction(panels[1], self.first.direction, "first direction")
        return panels[0].figure


def draw_ratios(
    axes: Any, found: CriticalTimes, colour: str = PALETTE[0], label: str = "direction", foot: float = 0.06
) -> list[tuple[float, str, str]]:
    """μ_k/κ against σ on logarithmic axes, the critical value 1 and the crossings.

    Returns:
        For :func:`label_ends`, once everything is drawn: last value, name and colour of each curve.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = []
    for k in sorted({visit.order for visit in found.history}):
        own = [visit for visit in found.history if visit.order == k and visit.ratio > 0]
        # Where all draws were used a value from a few of them beside it only makes the line jagged.
        near = max((visit.sigma for visit in own if visit.fine), default=0.0)
        points = [visit for visit in own if visit.fine or visit.sigma > 1.1 * near]
        if points:
            axes.plot(
                [visit.sigma for visit in points], [visit.ratio for visit in points], color=colour, linewidth=1.8,
                alpha=1 / (1 + 0.5 * k),
            )  # fmt: skip
            ends.append((points[0].ratio, f"{label} {k + 1}", colour))
    axes.axhline(1, color=INK, alpha=0.6, linewidth=0.8)
    axes.plot([c.sigma for c in found.crossings], [1.0] * len(found.crossings), "o", color=colour, markersize=5)
    dress(axes, "noise level σ", "eigenvalue of ∂D/∂x over its critical value")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if found.first is not None:
        marker_line(axes, found.first.sigma, f"{label}: σ = {found.first.sigma:.3g}", foot)
    return ends


def draw_direction(axes: Any, direction: Tensor, title: str) -> None:
    """A direction as a picture: its own sign, blue to red, for one channel; colours about grey for three."""
    v = direction.double()
    peak = max(float(v.abs().max()), 1e-30)
    if v.shape[0] == 1:
        axes.imshow(v[0].numpy(), cmap="RdBu_r", vmin=-peak, vmax=peak)
    else:
        axes.imshow((0.5 + 0.5 * v / peak).clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, color=INK, fontsize=10)
    for side in axes.spines.values():
        side.set_visible(False)


def overlap(a: Tensor, b: Tensor) -> float:
    """|cosine| of the angle between two directions."""
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).abs())
