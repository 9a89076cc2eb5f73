"""Where does a network's denoiser leave the optimal one: the three regions of the score deviation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from farfield.analysis.diagnosis import score_deviation
from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.analysis.tables import Table
from farfield.data import DataSet, load
from farfield.denoiser import Denoiser
from farfield.distributions.jittered import Jittered
from farfield.errors import unknown_name
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment, figure_name
from farfield.interop import load as load_model
from farfield.sampling import Sampler, karras

#: The bundled model of a data set; its starts, as many as take a minute or two on one core.
STARTS = {"digits": 64, "cifar10": 32}
#: The published setting, and the published boundaries of the regions on CIFAR-10 at 32×32 (Chen et al., section 6).
LEVELS = 18
PUBLISHED = {"cifar10": (10.0, 3.0, 3072)}
#: Jitter of the exact stand-ins, points of their data, starts and levels.
JITTER = (0.1, 0.2, 0.4)
POINTS, JITTER_STARTS, JITTER_LEVELS = 500, 32, 40


def bundled(settings: Settings) -> Iterator[tuple[str, Denoiser, DataSet]]:
    """The bundled models of the data sets asked for, with the data at the model's size.

    Raises:
        ArgumentError: for a data set that has no model here.
    """
    chosen = settings.data or tuple(STARTS)
    for name in chosen:
        if name not in STARTS:
            raise unknown_name("data set of this experiment", name, STARTS)
    for name in available(chosen, settings.progress):
        model = load_model(name)
        yield name, model, load(name, size=(model.event_shape[-2], model.event_shape[-1]))


def stand_ins(seed: int) -> tuple[Table, bool]:
    """Jittered digits, whose deviation is known to peak at the jitter δ: the table, and whether all have three regions."""
    data = load("digits").train.images[:POINTS].double()
    rows: list[tuple[Any, ...]] = []
    right = []
    for delta in JITTER:
        model = Jittered(data, delta)
        found = score_deviation(
            model, data, n=JITTER_STARTS, seed=seed, sampler=Sampler("heun", karras(JITTER_LEVELS)), dtype=data.dtype
        )
        regions = found.regions
        assert regions is not None  # a jittered law differs from its points
        end = found.along_own.mean[-1]
        rows.append((delta, regions.falling, regions.peak, regions.before, end, delta * math.sqrt(model.dim)))
        right.append(regions.three and found.grows and 0.5 < regions.falling / delta < 2)
    columns = ("jitter δ", "peak at σ", "peak", "share before the rise", "own path, at the end", "δ√d")
    return Table(
        f"exact stand-ins: {POINTS} jittered digits, Heun on {JITTER_LEVELS} levels", columns, tuple(rows)
    ), all(right)


def _row(name: str, dim: int, found: ScoreDeviation) -> tuple[Any, ...]:
    regions = found.regions
    assert regions is not None  # a network is never the optimum
    rising, falling, full = PUBLISHED.get(name, (None, None, dim))
    # Distances between images grow with the square root of their dimension, and the boundaries with them.
    scale = math.sqrt(dim / full)
    return (
        name, found.n, regions.rising, None if rising is None else rising * scale, regions.falling,
        None if falling is None else falling * scale, regions.peak, regions.before, regions.end / regions.peak,
        found.along_own.mean[-1], found.grows_from, ", ".join(f"{s:.3g}" for s in found.outliers),
    )  # fmt: skip


@experiment(
    "score-deviation",
    claim="Along the optimal denoiser's path the deviation of a network's denoiser from it is negligible at high noise, "
    "rises, and falls towards the data; along the network's own path it only grows",
    source="Chen et al., A geometric perspective on diffusion models, section 6 and observation 4; on CIFAR-10 at 32×32 the "
    "regions change at σ = 10 and 3",
    cost="about two minutes on one core",
)
def regions_of_deviation(settings: Settings) -> Outcome:
    """Exact stand-ins first, then the bundled networks beside their training sets."""
    theory, right = stand_ins(settings.seed)
    rows: list[tuple[Any, ...]] = []
    curves: list[Table] = []
    figures: dict[str, Any] = {}
    whole, shape, words, used = list[bool](), list[bool](), list[str](), list[str]()
    for name, model, data in bundled(settings):
        found = score_deviation(model, data.train.images, n=STARTS[name], seed=settings.seed)
        regions = found.regions
        assert regions is not None
        used.append(name)
        rows.append(_row(name, model.dim, found))
        first = found.tables()[0]
        curves.append(Table(f"{name}: {first.title}", first.columns, first.rows))
        figures[figure_name("score-deviation", name)] = found.plot()
        whole.append(regions.three and found.grows)
        shape.append(regions.falls and regions.falling < regions.rising <= found.grows_from)
        share = f"{float(found.premise[0].mean()):.1%} of the score at the highest level"
        before = "negligible" if regions.negligible else f"up to {regions.before:.0%} of the peak ({share})"
        words.append(
            f"{name}: {before} above σ = {regions.rising:.2g}, peak at {regions.falling:.2g}, "
            f"{regions.end / regions.peak:.1%} of it at the end; on its own path it only grows below σ = {found.grows_from:.2g}"
        )
    verdict: Verdict = "holds" if right and all(whole) else "holds in part" if right and all(shape) else "does not hold"
    exact = "have" if right else "do not all have"
    columns = (
        "model", "starts", "rising below σ", "published, to scale", "falling below σ", "published, to scale", "peak",
        "largest before the rise / peak", "at the end / peak", "own path, at the end", "own path grows below σ", "outliers",
    )  # fmt: skip
    tables = (theory, Table(f"bundled networks, Heun on {LEVELS} levels", columns, tuple(rows)), *curves)
    because = f"exact stand-ins {exact} the three regions with a peak at their jitter; {'; '.join(words)}"
    return Outcome(verdict, because, tables, figures, {"seed": settings.seed, "levels": LEVELS, "data": used})
