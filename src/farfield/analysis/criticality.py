"""When a model has to choose, beside its data: critical times of the exact law and of the network, direction by direction.

The exact law of the training set is examined twice. In the noiseless state, where the theory speaks; and averaged over the
noise that surrounds a sample, where the network was trained and the two can be compared: with the same draws for both.

They agree where the crossings differ by less than twice their errors. These are numerical, with the spread over the draws of
the noise, and for the data that of the points (a network that generalises follows the law behind them). Where they do not, the
network's posterior variance along the data's direction says why: at a slope ``d log μ/d log σ`` an excess of it by a fraction
ε moves the crossing by ``ε/slope``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.critical_closed_form import critical_time_closed_form, spread_signal
from farfield.analysis.critical_field import Dynamics
from farfield.analysis.critical_result import CriticalTimes, draw_direction, draw_ratios, overlap
from farfield.analysis.critical_sampling import sampling_error, variance_along
from farfield.analysis.critical_times import critical_times
from farfield.analysis.images import is_image
from farfield.analysis.normalisation import Departure, departure
from farfield.analysis.plotting import PALETTE, axes_for, label_ends
from farfield.analysis.tables import Cell, Table
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, SubVP, TimeMap

#: In units of the errors: crossings closer than this agree.
_AGREE = 2.0
#: Points by which the distance of the data from the theory's assumptions is judged.
_LOOKED_AT = 5000


@dataclass(frozen=True)
class Match:
    """One direction of the data beside one of the network.

    Attributes:
        order: number of the direction, from 0.
        data, model: the crossings σ.
        data_error, model_error: their numerical errors.
        sampling: standard error of the data's crossing over the points.
        overlap: |cosine| between the two directions.
        within: length of the network's direction within the span of all the data's: directions whose crossings are close are
            free to mix.
        excess: the network's posterior variance along the data's direction over the data's own, minus 1, at the data's
            crossing and on the same draws.
        explained: the gap that this excess makes, in σ.
    """

    order: int
    data: float
    model: float
    data_error: float
    model_error: float
    sampling: float
    overlap: float
    within: float
    excess: float
    explained: float

    @property
    def gap(self) -> float:
        """``σ_model − σ_data``."""
        return self.model - self.data

    @property
    def error(self) -> float:
        """Standard deviation of the gap."""
        return math.sqrt(self.data_error**2 + self.model_error**2 + self.sampling**2)

    @property
    def agrees(self) -> bool:
        """Whether the gap is within twice its error."""
        return abs(self.gap) <= _AGREE * self.error


@dataclass(frozen=True, eq=False)
class Criticality:
    """Critical times of a data set and of the model trained on it.

    Attributes:
        name: of the model.
        bare: the exact law, noiseless.
        ode: its probability-flow ODE, whose criterion differs; None where ``bare`` is that.
        data, model: the exact law and the network, averaged over the same noise.
        matches: direction by direction, as far as both have a crossing.
        eigenvalues: the largest eigenvalues of the data's covariance.
        symmetric: the crossings σ that data with those eigenvalues would have if they were symmetric about their mean and of
            one length (B = asinh λ); None where they have none.
        wide: the crossings σ of a Gaussian with those eigenvalues, which is no choice.
        count: points of the data.
        departure: how far (the first 5000 of) the data are from the theory's assumptions.
    """

    name: str
    bare: CriticalTimes
    ode: CriticalTimes | None
    data: CriticalTimes
    model: CriticalTimes
    matches: tuple[Match, ...]
    eigenvalues: tuple[float, ...]
    symmetric: tuple[float | None, ...]
    wide: tuple[float | None, ...]
    count: int
    departure: Departure

    def summary(self) -> str:
        """The first critical time of both, and whether they agree."""
        first = self.matches[0] if self.matches else None
        if first is None:
            return f"data, {self.data.summary()} Model, {self.model.summary()}"
        crossing = self.model.crossings[0]
        verdict = (
            f"they agree within twice the error of the difference, {first.error:.2g}"
            if first.agrees
            else f"they differ by {first.gap:+.2g}, {abs(first.gap) / first.error:.1f} errors: the network's posterior "
            f"variance along the data's direction is {100 * first.excess:+.1f} % off, which makes {first.explained:+.2g}"
        )
        told = [("The model's", crossing), ("The data's", self.data.crossings[0])]
        about = next((f" {whose} is {c.about}." for whose, c in told if c.kind != "unchecked"), "")
        noiseless = self.bare.first
        theory = (
            "" if noiseless is None else f" Without noise the data's law becomes critical at σ = {noiseless.sigma:.4g}."
        )
        return (
            f"First critical noise level: {first.data:.4g} for the data, {first.model:.4g} for {self.name} (s = "
            f"{crossing.time:.3g}); {verdict}.{about}{theory}"
        )

    def tables(self) -> list[Table]:
        """Crossings of both by direction, their agreement, and the theories beside the noiseless law."""
        rows: list[tuple[Cell, ...]] = []
        for m in self.matches:
            d, c = self.data.crossings[m.order], self.model.crossings[m.order]
            rows.append(
                (
                    m.order + 1, m.data, m.model, m.gap, m.error, "yes" if m.agrees else "no", m.overlap, m.within, m.excess,
                    m.explained, c.time, c.theta, c.index, d.kind, c.kind,
                )
            )  # fmt: skip
        columns = (
            "direction", "σ data", "σ model", "gap", "± gap", "agree", "|cos|", "in span", "excess variance", "explains",
            "s", "θ", "index", "data: leads to", "model: leads to",
        )  # fmt: skip
        both = Table(f"critical noise levels, averaged over {self.data.noise} draws of noise", columns, tuple(rows))
        return [both, self._theory(), *self.departure.tables(), *self.data.tables("data"), *self.model.tables("model")]

    def _theory(self) -> Table:
        rows = []
        for k, value in enumerate(self.eigenvalues):
            found = self.bare.crossings[k] if k < len(self.bare.crossings) else None
            ode = None if self.ode is None else _level(self.ode, k)
            rows.append(
                (
                    k + 1, value, self.symmetric[k], self.wide[k], None if found is None else found.sigma,
                    None if found is None else found.tilt, None if found is None else found.bistable_sigma,
                    None if found is None else found.kind, ode,
                )
            )  # fmt: skip
        columns = (
            "direction", "eigenvalue λ", "σ, asinh λ", "σ, Gaussian", "σ, exact law", "tilt", "both from σ", "leads to",
            "σ, exact law, ODE",
        )  # fmt: skip
        return Table(f"the noiseless law of {self.count} points", columns, tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "name": self.name,
            "count": self.count,
            "matches": [{**m.__dict__, "gap": m.gap, "error": m.error, "agrees": m.agrees} for m in self.matches],
            "eigenvalues": list(self.eigenvalues),
            "symmetric": list(self.symmetric),
            "wide": list(self.wide),
            "departure": self.departure.to_dict(),
            "bare": self.bare.to_dict(),
            "ode": None if self.ode is None else self.ode.to_dict(),
            "data": self.data.to_dict(),
            "model": self.model.to_dict(),
        }

    def plot(self, ax: Any = None) -> Any:
        """Leading eigenvalues of both by noise level, and the directions that become unstable, where they are images."""
        shown = [c for c in (*self.data.crossings[:1], *self.model.crossings[:1]) if is_image(tuple(c.direction.shape))]
        if ax is not None or not shown:
            (axes,) = axes_for(ax, width=7.6, height=4.2)
            self._curves(axes)
            return axes.figure
        from matplotlib.figure import Figure

        columns = max(len(self.data.crossings), len(self.model.crossings))
        figure = Figure(figsize=(7.2 + 1.5 * columns, 4.2), layout="constrained")
        cells = figure.add_gridspec(2, 2 + columns, width_ratios=(6.2, 1.0, *(1.5,) * columns))
        grid = [[figure.add_subplot(cells[row, 2 + k]) for k in range(columns)] for row in range(2)]
        for row, (title, found) in enumerate((("data", self.data), ("model", self.model))):
            for k in range(columns):
                if k < len(found.crossings):
                    c = found.crossings[k]
                    sign = 1.0
                    if row and k < len(self.data.crossings):
                        sign = math.copysign(1.0, float((c.direction * self.data.crossings[k].direction).sum()))
                    draw_direction(grid[row][k], sign * c.direction, f"{title} {k + 1}\nσ = {c.sigma:.3g}")
                else:
                    grid[row][k].set_axis_off()
        self._curves(figure.add_subplot(cells[:, 0]))
        return figure

    def _curves(self, axes: Any) -> None:
        ends = draw_ratios(axes, self.data, PALETTE[0], "data")
        ends += draw_ratios(axes, self.model, PALETTE[1], "model", foot=0.4)
        label_ends(axes, ends)


def _level(found: CriticalTimes, k: int) -> float | str | None:
    """The k-th crossing's σ; where the direction is unstable at the highest noise already, that."""
    if k < found.unstable_at_start:
        return "unstable at all"
    at = k - found.unstable_at_start
    return found.crossings[at].sigma if at < len(found.crossings) else None


@dataclass(frozen=True)
class CriticalityOptions:
    """Options of the analysis; see :func:`farfield.analysis.critical_times.critical_times`.

    ``process``: whose dynamics; ``beta_min`` and ``beta_max`` are those of VP and sub-VP. ``centred``: the process contracts
    towards the data's mean instead of 0. ``points``: use the first so many of the data; 0 for all. ``check``: look at what each
    crossing leads to; ``check_model``: that of the model too, which costs most; ``check_bare``: and without noise.
    """

    process: Literal["vp", "subvp", "ve", "ddpm"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    dynamics: Dynamics = "sde"
    count: int = 2
    noise: int = 32
    centred: bool = True
    points: int = 0
    tolerance: float = 1e-3
    check: bool = True
    check_model: bool = True
    check_bare: bool = True


def _process(options: CriticalityOptions) -> TimeMap:
    if options.process == "vp":
        return VP(options.beta_min, options.beta_max)
    if options.process == "subvp":
        return SubVP(options.beta_min, options.beta_max)
    return VE() if options.process == "ve" else DDPM()


@analysis(
    "criticality",
    about="when the model has to choose, and along which directions, beside its data",
    options=CriticalityOptions,
)
def analyze_criticality(subject: Subject, options: CriticalityOptions) -> Criticality:
    """Critical times of the exact law of a subject's data and of its model.

    Raises:
        ArgumentError: for options out of range.
    """
    if options.points < 0:
        raise ArgumentError(f"points = {options.points}; expected 0 for all of them, or a number")
    if options.noise < 2 or options.noise % 2:
        raise ArgumentError(f"noise = {options.noise}; expected an even number, at least 2")
    process = _process(options)
    data = subject.data[: options.points] if options.points else subject.data
    mean = data.double().mean(0)
    law = Empirical(data)
    shared: dict[str, Any] = {
        "count": min(options.count, law.dim),
        "origin": mean if options.centred else None,
        "tolerance": options.tolerance,
        "seed": subject.seed,
        # The same horizon for both, so that they are asked the same question.
        "sigma_max": min(process.sigma(process.t_max), subject.model.sigma_max),
        "sigma_min": max(process.sigma(process.t_min), subject.model.sigma_min),
    }
    noisy = {**shared, "dynamics": options.dynamics, "noise": options.noise, "check": options.check}
    tasks: dict[str, tuple[Denoiser, dict[str, Any]]] = {
        "bare": (law, {**shared, "dynamics": options.dynamics, "check": options.check and options.check_bare}),
        "data": (law, noisy),
        "model": (subject.model, {**noisy, "check": options.check and options.check_model}),
    }
    if options.dynamics == "sde":
        tasks["ode"] = (law, {**shared, "dynamics": "ode", "check": False})
    threshold = 1 if subject.progress else len(tasks) + 1
    found = {
        name: critical_times(tasks[name][0], process, **tasks[name][1])
        for name in track(list(tasks), len(tasks), "critical times", threshold)
    }
    values = Gaussian.fit(data, rank=None if law.dim <= 1024 else shared["count"]).spectrum.values
    largest = values.double().cpu().sort(descending=True).values[: shared["count"]].tolist()
    forms = [critical_time_closed_form(max(v, 1e-12), process, dynamics=options.dynamics) for v in largest]
    return Criticality(
        name=subject.name,
        bare=found["bare"],
        ode=found.get("ode"),
        data=found["data"],
        model=found["model"],
        matches=_matches(subject, data, found["data"], found["model"], options.noise),
        eigenvalues=tuple(largest),
        symmetric=tuple(None if form is None else form.sigma for form in forms),
        wide=tuple(_wide(v, options.dynamics, process) for v in largest),
        count=len(data),
        departure=departure(data[:_LOOKED_AT]),
    )


def _wide(variance: float, dynamics: Dynamics, process: TimeMap) -> float | None:
    theta = spread_signal(max(variance, 1e-12), dynamics) if isinstance(process, VP) else None
    return math.sqrt(1 / theta**2 - 1) if theta else None


def _within(vector: Tensor, others: Sequence[Tensor]) -> float:
    q = torch.linalg.qr(torch.stack([o.flatten().double() for o in others], 1)).Q
    return float((q.T @ vector.flatten().double()).norm() / vector.double().norm())


def _matches(
    subject: Subject, data: Tensor, exact: CriticalTimes, model: CriticalTimes, noise: int
) -> tuple[Match, ...]:
    found = []
    law = Empirical(data)
    for d, m in zip(exact.crossings, model.crossings, strict=False):
        ours = variance_along(subject.model, d, noise=noise, seed=subject.seed)
        theirs = variance_along(law, d, noise=noise, seed=subject.seed)
        excess = ours / theirs - 1
        found.append(
            Match(
                order=d.order,
                data=d.sigma,
                model=m.sigma,
                data_error=d.error,
                model_error=m.error,
                sampling=sampling_error(data, d, noise=noise, seed=subject.seed),
                overlap=overlap(d.direction, m.direction),
                within=_within(m.direction, [c.direction for c in exact.crossings]),
                excess=excess,
                explained=d.sigma * excess / max(abs(d.slope), 1e-6),
            )
        )
    return tuple(found)
