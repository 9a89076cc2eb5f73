"""How well samples survive the way to noise and back, by solver and evaluations, and how right their latents are.

    x₀ → z = encode(x₀) → decode(z),    error  sqrt(mean (decode(z) − x₀)²) per coordinate

A round trip is a weak test of a latent: coming down by the rule that went up undoes part of its error, so an image can come
back well from a latent that is wrong. So the latents are also compared with those of a fine solution, and with the shell of
N(0, σ² I) on which the model was trained (:mod:`farfield.analysis.interpolation_diagnostics`). Euler's rule upwards is DDIM
inversion (Song, Meng & Ermon 2021); it takes the denoiser of each step at the step's lower end, which makes latents too short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.diagnosis_follow import takes_classes
from farfield.analysis.entrants import sigma_range
from farfield.analysis.interpolation_diagnostics import LatentDiagnostics, latent_diagnostics
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends
from farfield.analysis.tables import Table
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.sampling import karras
from farfield.sampling.encoding import CLIMBERS, Lift, encode, rms
from farfield.sampling.round_trip import round_trip
from farfield.sampling.solvers import SOLVERS, Whitened

#: Levels of the fine solution, climbed by third-order whitened steps.
FINE = 128
_NAMES = {"euler": "Euler (DDIM inversion)", "heun": "Heun", "whitened": "whitened"}


@dataclass(frozen=True)
class InversionRow:
    """One solver on one grid.

    Attributes:
        solver: its name.
        levels: of the grid.
        nfe: evaluations there and back.
        error: median over the samples of the round trip's error, root mean square per coordinate; ``worst``: its 90 %
            quantile.
        path_error: median of the error at the lowest level, without the step to zero noise.
        latent_error: median distance of the latents from those of the fine solution, over σ_max, per coordinate.
        norm: mean ‖z‖/(σ√d).
    """

    solver: str
    levels: int
    nfe: int
    error: float
    worst: float
    path_error: float
    latent_error: float
    norm: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """Round trips of samples; see the head of this module.

    Attributes:
        rows: by solver, then levels.
        floor: median change of the samples by the step to zero noise alone; no round trip does better.
        n: samples.
        sigma_min, sigma_max: ends of the grids.
        lift: what stands for a clean sample at the lowest level.
        latents: diagnostics of the fine solution's latents.
    """

    rows: tuple[InversionRow, ...]
    floor: float
    n: int
    sigma_min: float
    sigma_max: float
    lift: Lift
    latents: LatentDiagnostics

    @property
    def best(self) -> InversionRow:
        """The row of the smallest error; of those within a tenth of it, the one of fewest evaluations."""
        least = min(row.error for row in self.rows)
        return min((row for row in self.rows if row.error <= 1.1 * least), key=lambda row: row.nfe)

    def summary(self) -> str:
        """The best row, Euler's beside it, and whether the latents are noise."""
        best = self.best
        text = (
            f"{_NAMES[best.solver]} brings samples back to within {best.error:.2g} per coordinate after {best.nfe} evaluations "
            f"there and back (floor {self.floor:.2g}, the step to zero noise)."
        )
        euler = [row for row in self.rows if row.solver == "euler" and row.nfe >= best.nfe // 2]
        if euler and best.solver != "euler":
            near = min(euler, key=lambda row: abs(row.nfe - best.nfe))
            text += f" DDIM inversion is at {near.error:.2g} after {near.nfe}."
        ratio = self.latents.ratio
        spread = 1 / math.sqrt(2 * self.latents.dim * ratio.numel())
        text += (
            f" The latents of the fine solution have {float(ratio.mean()):.3f} of the noise's radius on average; noise has "
            f"1 ± {spread:.2g}."
        )
        return text

    def tables(self) -> list[Table]:
        """All rows."""
        columns = (
            "solver", "levels", "evaluations", "error", "90 % of samples below", "at the lowest level",
            "latent error / σ", "norm / σ√d",
        )  # fmt: skip
        cells = tuple(
            (_NAMES[r.solver], r.levels, r.nfe, r.error, r.worst, r.path_error, r.latent_error, r.norm)
            for r in self.rows
        )
        title = f"{self.n} samples to σ = {self.sigma_max:g} and back, {self.lift} at σ = {self.sigma_min:g}"
        return [Table(title, columns, cells)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "floor": self.floor,
            "n": self.n,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "lift": self.lift,
            "latents": self.latents.to_dict(),
        }

    def plot(self, ax: Any = None) -> Any:
        """Error of the round trip, and of the latents, against evaluations. Returns the figure."""
        left, right = axes_for(ax, 2, width=9.8, height=3.9)
        ends: dict[str, list[tuple[float, str, str]]] = {"error": [], "latent_error": []}
        for place, solver in enumerate(dict.fromkeys(row.solver for row in self.rows)):
            rows = sorted((row for row in self.rows if row.solver == solver), key=lambda row: row.nfe)
            for axes, what in ((left, "error"), (right, "latent_error")):
                values = [max(getattr(row, what), 1e-12) for row in rows]
                axes.plot([row.nfe for row in rows], values, ".-", color=PALETTE[place], linewidth=1.8, markersize=7)
                if what == "error":
                    axes.fill_between(
                        [row.nfe for row in rows], values, [max(row.worst, 1e-12) for row in rows],
                        color=PALETTE[place], alpha=0.12, linewidth=0,
                    )  # fmt: skip
                ends[what].append((values[-1], _NAMES[solver].split(" ")[0], PALETTE[place]))
        for axes, title, label in (
            (left, "round trip", "error per coordinate (median to 90 %)"),
            (right, "latents", "distance from the fine solution / σ"),
        ):
            axes.set_xscale("log")
            axes.set_yscale("log")
            dress(axes, "evaluations, there and back", label, title)
            counts = sorted({row.nfe for row in self.rows})
            ticks = [c for k, c in enumerate(counts) if k == 0 or c >= 1.45 * counts[k - 1] or k == len(counts) - 1]
            axes.set_xticks(ticks, [str(c) for c in ticks])
            axes.minorticks_off()
        if self.floor > 0:
            left.axhline(self.floor, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)))
            left.annotate(
                "floor: the step to zero noise", (0.02, self.floor), xytext=(0, 3), fontsize=8, color=INK, alpha=0.75,
                xycoords=("axes fraction", "data"), textcoords="offset points",
            )  # fmt: skip
        label_ends(left, ends["error"])
        label_ends(right, ends["latent_error"])
        return left.figure


def invert(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    levels: Sequence[int] = (6, 10, 18, 36),
    solvers: Sequence[str] = CLIMBERS,
    gaussian: Gaussian | None = None,
    lift: Lift = "clean",
    fine: int = FINE,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    **condition: Any,
) -> Inversion:
    """Measure round trips on Karras grids of several lengths.

    Args:
        denoiser: the model.
        x0: clean samples (n, *event).
        levels: of the grids.
        solvers: of ``"euler"``, ``"heun"`` and ``"whitened"``.
        gaussian: the data's Gaussian, for the whitened solver and the fine solution.
        lift: ``"clean"`` or ``"noised"``, as for :func:`farfield.sampling.encoding.encode`.
        fine: levels of the fine solution.
        seed: of the lift.
        batch_size: samples evaluated at once.
        progress: show a bar where a person watches.
        **condition: passed to the denoiser.

    Raises:
        ArgumentError: for no samples, fewer than two levels, a solver that cannot climb, or another process than diffusion.
    """
    if not (levels and min(levels) >= 2 and solvers and fine >= 2):
        raise ArgumentError(
            f"levels = {list(levels)}, fine = {fine}, solvers = {list(solvers)}; expected >= 2 levels each"
        )
    for name in solvers:
        if name not in CLIMBERS:
            raise ArgumentError(f"solver {name!r} cannot climb; expected some of {', '.join(CLIMBERS)}")
    if not denoiser.process.gaussian:
        raise ArgumentError(f"latents are compared with Gaussian noise; the model belongs to {denoiser.process!r}")
    low, high = sigma_range(denoiser)
    options: dict[str, Any] = {"lift": lift, "seed": seed, "batch_size": batch_size, **condition}
    exact = encode(
        denoiser, x0, karras(fine, low, high), solver=Whitened(3), covariance=gaussian, estimate=False,
        **options,
    )  # fmt: skip
    cells = [(name, count) for name in solvers for count in sorted(set(levels))]
    rows, floor = [], 0.0
    for name, count in track(cells, len(cells), "inversion", threshold=1 if progress else len(cells) + 1):
        covariance = gaussian if SOLVERS[name].uses_covariance else None
        trip = round_trip(denoiser, x0, karras(count, low, high), solver=name, covariance=covariance, **options)
        floor = float(trip.floor.median())
        rows.append(
            InversionRow(
                solver=name,
                levels=count,
                nfe=trip.nfe,
                error=float(trip.error.median()),
                worst=float(trip.error.quantile(0.9)),
                path_error=float(trip.path_error.median()),
                latent_error=float(rms(trip.latents.z - exact.z).median()) / high,
                norm=float(latent_diagnostics(trip.latents.z, high).ratio.mean()),
            )
        )
    return Inversion(tuple(rows), floor, len(x0), low, high, lift, latent_diagnostics(exact.z, high))


@dataclass(frozen=True)
class InversionOptions:
    """Options of the analysis.

    Attributes:
        n: samples, of the held-out data where there are some; of the training data, whose classes are known, for a model
            that takes classes.
        levels: of the grids.
        solvers: of euler, heun and whitened.
        lift: clean or noised.
        fine: levels of the fine solution that latents are compared with.
        rank: of the Gaussian above 1024 coordinates.
    """

    n: int = 32
    levels: tuple[int, ...] = (6, 10, 18, 36)
    solvers: tuple[str, ...] = CLIMBERS
    lift: Literal["clean", "noised"] = "clean"
    fine: int = FINE
    rank: int = 64


@analysis("inversion", about="what a round trip to noise and back costs, by solver", options=InversionOptions)
def analyze_inversion(subject: Subject, options: InversionOptions) -> Inversion:
    """Round trips of held-out samples; of training samples where there are none, or where the model takes their classes."""
    classes = subject.labels if takes_classes(subject.model, subject.labels) else None
    held = subject.heldout is not None and len(subject.heldout) >= options.n and classes is None
    data = subject.heldout if held else subject.data
    assert data is not None
    if not 1 <= options.n <= len(data):
        raise ArgumentError(f"n = {options.n}; expected 1 to {len(data)}, the samples there are")
    rows = streams.permutation(subject.seed, len(data), purpose="inversion")[: options.n].to(data.device)
    condition: dict[str, Any] = {} if classes is None else {"labels": classes[rows]}
    wide = data[0].numel() > 1024
    gaussian = Gaussian.fit(subject.data, rank=options.rank if wide else None)
    return invert(
        subject.model,
        data[rows],
        levels=options.levels,
        solvers=options.solvers,
        gaussian=gaussian,
        lift=options.lift,
        fine=options.fine,
        seed=subject.seed,
        progress=subject.progress,
        **condition,
    )
