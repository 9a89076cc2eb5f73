"""Does a model replay its training data? Its samples beside those of the optimal denoiser from the same starts.

The optimal denoiser of a finite data set falls into the basin of one data point and returns it: every sample is a replay. A
model whose score deviates from it is attracted by a point at first but does not fall in (Chen et al., A geometric perspective
on diffusion models, section 6 and figures 15, 19). For each start this audit tells

    nearest data     of both samples, and the ratio d₁/d₂ to the second nearest (:mod:`farfield.metrics.memorisation`)
    same basin       whether the point nearest to the model's sample is the one that the optimal denoiser returns
    leading          from which level on that point is the nearest one to ``r*(x_n)`` on the model's path
    locked           from which level on ``r*(x_n)`` is that point
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.diagnosis_curves import reached
from farfield.analysis.diagnosis_follow import DiagnosisOptions, Setup, follow, pictures_of
from farfield.analysis.diagnosis_paths import (
    Neighbours,
    along,
    distinct_points,
    leading,
    locked,
    same_points,
)
from farfield.analysis.diagnosis_result import ALMOST_ALL
from farfield.analysis.diagnosis_starts import StartKind
from farfield.analysis.entrants import in_words
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.metrics.memorisation import COPY_RATIO, Memorisation, memorisation
from farfield.sampling import Sampler

#: A sample *is* a data point where d₁/d₂ is below this.
EXACT = 1e-3


@dataclass(frozen=True, eq=False)
class ReplayAudit:
    """What became of samples of a model and of the optimal denoiser.

    Attributes:
        model, optimal: distances of the samples of either to the data, the model's beside those of held-out data.
        same_basin: (n,) whether the point nearest to the model's sample is nearest to the optimal one's too.
        distinct: different data points among the optimal denoiser's samples.
        sigmas: the N levels.
        leading, locked: (N, n) whether the data point nearest to ``r*(x)`` on the model's path is the sample's, and whether
            ``r*(x)`` is that point.
        neighbours: the k nearest data of the model's samples, of its class where a start has one.
        nfe: evaluations of the model for each start; the optimal denoiser has one more at each level.
        starts, sampler, seed: how the samples were drawn.
        pictures: the panel, row by row: the model's samples, the optimal ones, the nearest data in turn.
    """

    model: Memorisation
    optimal: Memorisation
    same_basin: Tensor
    distinct: int
    sigmas: tuple[float, ...]
    leading: Tensor
    locked: Tensor
    neighbours: Neighbours
    nfe: int
    starts: str
    sampler: str
    seed: int
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Starts."""
        return len(self.same_basin)

    @property
    def replayed(self) -> float:
        """The share of the optimal denoiser's samples that are data points, d₁/d₂ < ``EXACT``."""
        return float((self.optimal.ratio < EXACT).double().mean())

    @property
    def model_replayed(self) -> float:
        """The share of the model's samples that are data points."""
        return float((self.model.ratio < EXACT).double().mean())

    @property
    def basin_rate(self) -> float:
        """The share of the model's samples nearest to the point into which the optimal denoiser falls."""
        return float(self.same_basin.double().mean())

    @property
    def captured(self) -> float:
        """The share of the model's samples that fell into that basin: copies of that point, d₁/d₂ < 1/3."""
        return float((self.same_basin & (self.model.ratio.cpu() < COPY_RATIO)).double().mean())

    @cached_property
    def lock_share(self) -> tuple[float, ...]:
        """The share of starts locked at each level."""
        return tuple(self.locked.double().mean(1).tolist())

    @cached_property
    def lead_share(self) -> tuple[float, ...]:
        """The share of starts whose nearest data point leads at each level."""
        return tuple(self.leading.double().mean(1).tolist())

    @property
    def leading_halfway(self) -> float:
        """The share of starts whose nearest data point leads after half of the steps."""
        return self.lead_share[len(self.sigmas) // 2]

    @property
    def lock_level(self) -> float | None:
        """The highest level σ from which on down 90 % of the starts are locked; None if never."""
        return reached(self.sigmas, self.lock_share, ALMOST_ALL)

    @property
    def locked_halfway(self) -> float:
        """The share of starts locked after half of the steps."""
        return self.lock_share[len(self.sigmas) // 2]

    def to_dict(self) -> dict[str, Any]:
        """All rates, distances and neighbours as plain values; the pictures are left out."""
        return {
            "model": self.model.to_dict(),
            "optimal": self.optimal.to_dict(),
            "replayed": self.replayed,
            "model_replayed": self.model_replayed,
            "basin_rate": self.basin_rate,
            "captured": self.captured,
            "distinct": self.distinct,
            "sigmas": list(self.sigmas),
            "lead_share": list(self.lead_share),
            "lock_share": list(self.lock_share),
            "lock_level": self.lock_level,
            "leading_halfway": self.leading_halfway,
            "locked_halfway": self.locked_halfway,
            "distance": self.model.distance.tolist(),
            "ratio": self.model.ratio.tolist(),
            "optimal_distance": self.optimal.distance.tolist(),
            "neighbours": {
                "distance": self.neighbours.distance.tolist(),
                "number": self.neighbours.number.tolist(),
            },
            "n": self.n,
            "nfe": self.nfe,
            "starts": self.starts,
            "sampler": self.sampler,
            "seed": self.seed,
        }

    def summary(self) -> str:
        """What the optimal denoiser replays, and what the model does instead."""
        near = float(self.model.distance.median())
        text = (
            f"From the same {self.n} starts {self.replayed:.0%} of the optimal denoiser's samples are training points "
            f"({self.distinct} different ones); of the model's {self.model_replayed:.0%} are, and {self.model.copies:.0%} are "
            f"copies (nearest point under a third as far as the second). Their median distance to the data is {near:.3g}"
        )
        if self.model.median_ratio is not None:
            text += f", {self.model.median_ratio:.2f} times that of held-out data"
        lock = self.lock_level
        until = "" if lock is None else f", which is decided for {ALMOST_ALL:.0%} at σ = {lock:.2g}"
        return (
            f"{text}. {self.basin_rate:.0%} lie nearest to the point that the optimal denoiser returns from the same start; "
            f"{self.captured:.0%} fell into it. The optimal denoiser's output on the model's own path becomes the sample's "
            f"nearest data point{until}."
        )

    def tables(self) -> list[Table]:
        """Both sets of samples beside held-out data; basins and locks."""
        held = self.model.heldout_distance
        rows = [
            ("model", self.model.copies, self.model_replayed, *_numbers(self.model.distance)),
            ("optimal denoiser", self.optimal.copies, self.replayed, *_numbers(self.optimal.distance)),
        ]
        if held is not None and self.model.heldout_ratio is not None:
            exact = float((self.model.heldout_ratio < EXACT).double().mean())
            rows.append(("held-out data", self.model.heldout_copies or 0.0, exact, *_numbers(held)))
        columns = ("samples of", "copies (d₁/d₂ < 1/3)", "data points", "nearest: median", "least", "largest")
        first = Table(f"distance to the training data, {self.n} starts ({self.starts})", columns, tuple(rows))
        second = Table(
            "basins",
            ("quantity", "value"),
            (
                ("nearest to the optimal denoiser's sample", self.basin_rate),
                ("fell into its basin", self.captured),
                ("different data points hit by the optimal denoiser", self.distinct),
                ("leading after half of the steps", self.leading_halfway),
                ("locked after half of the steps", self.locked_halfway),
                (f"{ALMOST_ALL:.0%} locked below σ", self.lock_level),
            ),
        )
        return [first, second]

    def plot(self, ax: Any = None) -> Any:
        """Distances to the data (left) and locked starts (right), with a panel of samples and neighbours for images.

        Args:
            ax: two axes for the curves alone, or None for a new figure.
        """
        from farfield.analysis.diagnosis_plot import draw_replay

        return draw_replay(self, ax)


def _numbers(values: Tensor) -> tuple[float, float, float]:
    return float(values.median()), float(values.min()), float(values.max())


def replay_audit(
    model: Denoiser,
    data: Tensor | Empirical,
    *,
    heldout: Tensor | None = None,
    labels: Tensor | None = None,
    conditional: bool | None = None,
    n: int = 64,
    seed: int = 0,
    starts: StartKind | Tensor = "gaussian",
    sampler: Sampler | None = None,
    neighbours: int = 3,
    shown: int = 10,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> ReplayAudit:
    """Sample a model and the optimal denoiser of its data from the same starts, and look for copies.

    Args:
        model: a network or an exact law.
        data: (N, *event) what it was trained on, with at least two distinct points, or the law of these data.
        heldout: (M, *event) data that it has not seen: how close honest samples come.
        labels, conditional, n, seed, starts, sampler, neighbours, shown, batch_size, dtype: as for
            :func:`~farfield.analysis.diagnosis.score_deviation`.

    Raises:
        ArgumentError: as there.
    """
    setup = Setup(n, seed, starts, sampler, neighbours, shown, batch_size, dtype)
    found = follow(model, data, labels, conditional, setup)
    law, paths = found.law, found.paths
    ends = paths.model.states[-1], paths.optimal.states[-1]
    near, other = (Neighbours.of(x, law, k, found.condition) for x, k in zip(ends, (neighbours, 1), strict=True))
    first, second = near.number[:, 0], other.number[:, 0]
    optimal = along(law, paths.model.states, paths.sigmas, found.condition, batch_size)
    held = heldout if heldout is not None and len(heldout) else None
    rows = {"model": ends[0], "optimal": ends[1]}
    rows |= {f"nearest {k + 1}": law.data[near.number[:, k]] for k in range(neighbours)}
    return ReplayAudit(
        model=memorisation(ends[0], law.data, held),
        optimal=memorisation(ends[1], law.data),
        same_basin=same_points(law, first, second).cpu(),
        distinct=distinct_points(law, second),
        sigmas=paths.sigmas,
        leading=leading(law, optimal, first, found.condition).cpu(),
        locked=locked(law, optimal, first).cpu(),
        neighbours=near.cpu(),
        nfe=paths.nfe,
        starts="given" if isinstance(starts, Tensor) else starts,
        sampler=in_words(found.sampler),
        seed=seed,
        pictures=pictures_of(model, rows, shown),
    )


@dataclass(frozen=True)
class ReplayOptions(DiagnosisOptions):
    """Options of the analysis; see :func:`replay_audit`."""

    n: int = 64
    neighbours: int = 3


@analysis(
    "replay",
    about="whether samples are copies of training data, beside the optimal denoiser's from the same starts",
    options=ReplayOptions,
)
def analyze_replay(subject: Subject, options: ReplayOptions) -> ReplayAudit:
    """:func:`replay_audit` of a subject against its training data."""
    return replay_audit(subject.model, heldout=subject.heldout, **options.arguments(subject))
