"""Do two models make the same image from the same noise, and is it their Gaussians that agree?

Networks trained apart, even on disjoint halves of the data, answer the same seed with similar images. If the far field is
Gaussian, most of that is explained by mean and covariance, which both halves share (Wang & Vastola 2024, section 7). For
each seed, with d the mean squared difference (or LPIPS):

    d(x_a, x_b)          the two models' samples
    d(g_a, g_b)          the ends of the two fitted Gaussian flows, no model involved
    d(x_a, x_b shifted)  samples of different seeds, four for each: what unrelated images of these models differ by

    consistency = 1 − mean d(x_a, x_b) / mean d(x_a, x_b shifted):   1 for equal maps, 0 for unrelated ones
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.deviation_plot import draw_strips
from farfield.analysis.entrants import BASELINE_LEVELS, describe, sigma_range
from farfield.analysis.images import is_image
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.preview_linear import linear_preview
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.metrics.image_distance import (
    PairDistance,
    PairedComparison,
    PairStatistics,
    PixelDistance,
    pair_distance,
    pair_statistics,
    paired_comparison,
)
from farfield.sampling import Prior, Sampler, karras

#: Other seeds that each seed is compared with.
_SHIFTS = 4

_ROWS = {
    "models": "the two models, same seed",
    "gaussians": "their two Gaussians, same seed",
    "own_a": "first model and its Gaussian",
    "own_b": "second model and its Gaussian",
    "shuffled": "the two models, other seeds",
    "shuffled_gaussians": "their two Gaussians, other seeds",
}


@dataclass(frozen=True, eq=False)
class SeedConsistency:
    """Distances between two models' samples, seed by seed.

    Attributes:
        distances: (n,) for each of ``models``, ``gaussians``, ``own_a``, ``own_b`` (a model and its own Gaussian, same
            seed), ``shuffled`` and ``shuffled_gaussians`` (sample i of the first with the next four of the second, their
            mean).
        distance: ``"mse"`` or ``"lpips-…"``.
        n, seed: the seeds.
        sampler: how both models were sampled.
        pictures: the first samples by name, empty where they are no images.
    """

    distances: dict[str, tuple[float, ...]]
    distance: str
    n: int
    seed: int
    sampler: dict[str, Any]
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def _values(self, name: str) -> Tensor:
        return torch.tensor(self.distances[name], dtype=torch.float64)

    def statistics(self, name: str) -> PairStatistics:
        """Mean, interval and median of one of the distances."""
        return pair_statistics(self._values(name))

    def _agreement(self, same: str, other: str) -> float:
        base = float(self._values(other).mean())
        return 1 - float(self._values(same).mean()) / base if base > 0 else 1.0

    @property
    def consistency(self) -> float:
        """``1 − mean d(same seed)/mean d(other seeds)`` of the models."""
        return self._agreement("models", "shuffled")

    @property
    def gaussian_consistency(self) -> float:
        """The same of the two Gaussian maps."""
        return self._agreement("gaussians", "shuffled_gaussians")

    @property
    def against_chance(self) -> PairedComparison:
        """Same seed against another, seed by seed."""
        return paired_comparison(self._values("models"), self._values("shuffled"))

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's ρ of the models' and the Gaussians' distances over the seeds; None for fewer than 3 or constant ones.

        Near 1, the seeds on which the Gaussians differ are those on which the models do.
        """
        from scipy.stats import spearmanr

        a, b = self._values("models"), self._values("gaussians")
        if self.n < 3 or float(a.max() - a.min()) == 0 or float(b.max() - b.min()) == 0:
            return None
        return float(spearmanr(a.numpy(), b.numpy()).statistic)

    def to_dict(self) -> dict[str, Any]:
        """All distances and what follows from them; the pictures are left out."""
        return {
            "distance": self.distance,
            "n": self.n,
            "seed": self.seed,
            "sampler": self.sampler,
            "consistency": self.consistency,
            "gaussian_consistency": self.gaussian_consistency,
            "rank_correlation": self.rank_correlation,
            "against_chance": self.against_chance.to_dict(),
            "statistics": {name: asdict(self.statistics(name)) for name in self.distances},
            "distances": {name: list(values) for name, values in self.distances.items()},
        }

    def summary(self) -> str:
        """How consistent the models are, and how consistent their Gaussians alone would be."""
        verdict = self.against_chance.verdict("the other model's sample of the same seed", "those of other seeds")
        return (
            f"From the same seed the two models' samples are {self.statistics('models').mean:.3g} apart ({self.distance}), "
            f"from different seeds {self.statistics('shuffled').mean:.3g}: consistency {self.consistency:.2f}; that of their "
            f"Gaussian maps is {self.gaussian_consistency:.2f}. Seed by seed, {verdict}."
        )

    def tables(self) -> list[Table]:
        """The distances."""
        rows = []
        for name, label in _ROWS.items():
            s = self.statistics(name)
            rows.append((label, s.mean, s.low, s.high, s.median))
        title = f"distance of samples ({self.distance}), {self.n} seeds"
        return [Table(title, ("between", "mean", "95 % from", "to", "median"), tuple(rows))]

    def plot(self, ax: Any = None) -> Any:
        """Distances by kind, a point for each seed and the mean as a bar; samples below where they are images.

        Args:
            ax: one axes for the distances alone, or None for a new figure.
        """
        if ax is None and self.pictures:
            from matplotlib.figure import Figure

            _, _, height, width = next(iter(self.pictures.values())).shape
            strip = 0.62 * len(self.pictures) * height / width + 0.4
            figure = Figure(figsize=(8.2, 3.2 + strip), layout="constrained")
            grid = figure.add_gridspec(2, 1, height_ratios=[3.2, strip])
            axes = figure.add_subplot(grid[0])
            draw_strips(figure.add_subplot(grid[1]), self.pictures, "samples from the same noise")
        else:
            (axes,) = axes_for(ax, width=8.2, height=3.2)
        _draw(axes, self)
        return axes.figure


def _draw(axes: Any, found: SeedConsistency) -> None:
    colours = {"models": 0, "gaussians": 2, "own_a": 4, "own_b": 4, "shuffled": 7, "shuffled_gaussians": 7}
    names = list(_ROWS)
    for k, name in enumerate(names):
        values = found._values(name)
        place = len(names) - 1 - k
        # A golden-ratio sequence spreads the points without chance and without a pattern to the eye.
        jitter = (torch.arange(found.n, dtype=torch.float64) * 0.6180339887498949) % 1 - 0.5
        shown = values.clamp(min=1e-12)
        colour = PALETTE[colours[name]]
        axes.scatter(shown, place + 0.4 * jitter, s=7, color=colour, alpha=0.45, linewidths=0)
        mean = max(float(values.mean()), 1e-12)
        axes.plot([mean, mean], [place - 0.28, place + 0.28], color=colour, linewidth=2.4)
        axes.annotate(
            f"{float(values.mean()):.2g}", (mean, place + 0.28), xytext=(0, 0), textcoords="offset points", fontsize=8,
            color=INK, ha="center", va="bottom",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-0.7, len(names) - 0.2)
    label = "mean squared difference" if found.distance == "mse" else found.distance
    dress(axes, f"distance of a pair of samples: {label}", "", "a point for each seed, bars are means")
    axes.set_yticks(range(len(names)), [_ROWS[name] for name in reversed(names)])
    axes.tick_params(axis="y", length=0)


def seed_consistency(
    model_a: Denoiser,
    model_b: Denoiser,
    data_a: Tensor | Gaussian,
    data_b: Tensor | Gaussian,
    n: int = 64,
    seed: int = 0,
    sampler: Sampler | None = None,
    *,
    distance: PairDistance | None = None,
    shown: int = 8,
    batch_size: int = 256,
) -> SeedConsistency:
    """Sample two models from the same seeds and compare, seed by seed, beside their Gaussians.

    Args:
        model_a, model_b: of the same shape.
        data_a, data_b: what each was trained on, (N, *event), or the Gaussians fitted to it.
        n: seeds, at least 2.
        seed: names them.
        sampler: how both are sampled; by default Heun on 18 levels within the range of both.
        distance: of two samples; pixel MSE by default.
        shown: samples kept to be shown, where they are images.
        batch_size: samples drawn at once.

    Raises:
        ArgumentError: for shapes that differ, fewer than two seeds, or a sampler that does not start from the prior.
    """
    if model_a.event_shape != model_b.event_shape:
        raise ArgumentError(
            f"the models have shapes {model_a.event_shape} and {model_b.event_shape}; expected the same"
        )
    if n < 2 or batch_size < 1 or shown < 0:
        raise ArgumentError(f"n = {n}, batch_size = {batch_size}, shown = {shown}; expected at least 2, 1 and 0")
    gaussians = []
    for name, data in (("data_a", data_a), ("data_b", data_b)):
        shape = data.event_shape if isinstance(data, Gaussian) else tuple(data.shape[1:])
        if shape != model_a.event_shape:
            raise ArgumentError(f"{name} has events {shape}; the models {model_a.event_shape}")
        gaussians.append(data if isinstance(data, Gaussian) else _fit(data))
    if sampler is None:
        (low_a, high_a), (low_b, high_b) = sigma_range(model_a), sigma_range(model_b)
        sampler = Sampler("heun", karras(BASELINE_LEVELS, max(low_a, low_b), min(high_a, high_b)))
    if not isinstance(sampler.start, Prior):
        raise ArgumentError(f"sampler starts with {sampler.start.name!r}; seeds are compared from the prior")
    measure = distance if distance is not None else PixelDistance()
    top = sampler.grid.levels[0]
    a, b = (sampler(m, n, seed, batch_size=batch_size).x for m in (model_a, model_b))
    b = b.to(a.device)
    ga, gb = (linear_preview(g, n, seed, sigma_max=top, batch_size=batch_size).to(a.device) for g in gaussians)
    pairs = {
        "models": (a, b),
        "gaussians": (ga, gb),
        "own_a": (a, ga),
        "own_b": (b, gb),
    }
    distances = {name: measure(x, y) for name, (x, y) in pairs.items()}
    for name, (x, y) in (("shuffled", (a, b)), ("shuffled_gaussians", (ga, gb))):
        others = [measure(x, y.roll(-k, 0)) for k in range(1, min(_SHIFTS, n - 1) + 1)]
        distances[name] = torch.stack(others).mean(0)
    keep = min(shown, n) if is_image(model_a.event_shape) else 0
    named = {"first model": a, "second model": b, "first Gaussian": ga, "second Gaussian": gb}
    return SeedConsistency(
        distances={name: tuple(values.tolist()) for name, values in distances.items()},
        distance=measure.name,
        n=n,
        seed=seed,
        sampler=describe(sampler),
        pictures={name: x[:keep].float().cpu() for name, x in named.items()} if keep else {},
    )


def _fit(data: Tensor) -> Gaussian:
    dim = data[0].numel()
    return Gaussian.fit(data, rank=None if dim <= 1024 else 512)


@dataclass(frozen=True)
class ConsistencyOptions:
    """Options of the analysis; see :func:`seed_consistency`."""

    n: int = 64
    distance: str = "mse"
    shown: int = 8


@analysis("consistency", about="whether two models make the same image of the same seed", options=ConsistencyOptions)
def analyze_consistency(subject: Subject, options: ConsistencyOptions) -> SeedConsistency:
    """:func:`seed_consistency` of a subject and the model it is to be compared with."""
    other = subject.other
    if other is None:
        raise ArgumentError("consistency compares two models; name the second one, as with --other")
    data = subject.other_data
    return seed_consistency(
        subject.model,
        other,
        subject.data,
        subject.data if data is None else data,
        n=options.n,
        seed=subject.seed,
        distance=pair_distance(options.distance, subject.data.device),
        shown=options.shown,
    )
