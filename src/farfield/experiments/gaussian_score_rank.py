"""How many components and eigenvalues a mixture needs before it explains a trained network as well as it can."""

from __future__ import annotations

import itertools
from typing import Any

from farfield.analysis.catalogue import Subject
from farfield.analysis.published import COMPONENTS_HURT_BEYOND, RANK_AT_10
from farfield.analysis.rank_sweep import COMPONENTS, RANKS, rank_sweep
from farfield.analysis.rank_sweep_plot import draw_components, draw_ranks
from farfield.analysis.rank_sweep_result import ENOUGH, RankSweep
from farfield.analysis.tables import Cell, Table
from farfield.experiments.base import Outcome, Settings, Verdict, experiment
from farfield.experiments.gaussian_score import subjects

QUERIES = 256
#: Levels that count as small noise.
SMALL = 0.2
U_SIGMAS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
#: The closed form holds for Gaussian data and an exact model; it has to name the rank up to this factor.
PREDICTED_WITHIN = 2.0
RANK_COMPONENTS = (1, 10, 100)
#: The ranks of the sweep, and some between so that "one step" is little.
RANK_GRID = tuple(sorted({*RANKS, 3, 6, 12, 24, 48, 80, RANK_AT_10, 160, 224, 320, 448, 640}))


@experiment(
    "mixture-u-shape",
    claim=f"At small noise (σ ≤ {SMALL}) more components first explain more of a network's score and then less: the "
    "unexplained fraction at full rank is U-shaped in K",
    source="Wang & Vastola 2024, section 4.4 and figure 9: worse beyond 200 to 500 components on MNIST, 100 on CIFAR-10",
    cost="about three minutes on one CPU core with both models",
)
def u_shape(settings: Settings) -> Outcome:
    """The unexplained fraction against the number of components, by level."""
    tables, figures, words, checks = [], {}, [], []
    for subject in subjects(settings):
        found = _sweep(subject, COMPONENTS, (), U_SIGMAS)
        small = [k for k, s in enumerate(found.sigmas) if s <= SMALL]
        checks += [found.is_u_shaped(k) for k in small]
        best = [found.best_components(k) for k in small]
        last = found.full(small[-1])
        count = sum(found.is_u_shaped(k) for k in small)
        words.append(
            f"{subject.name}, {found.count:,} images: a U at {count} of {len(small)} levels σ ≤ {SMALL}, its bottom at "
            f"K = {min(best)} to {max(best)}; at σ = {found.sigmas[small[-1]]:g} K = 1 leaves {last[0]:.3g}, the best "
            f"{min(last):.3g}, K = {found.components[-1]} {last[-1]:.3g}"
        )
        if subject.name == "cifar10":
            words.append(f"published for CIFAR-10: worse beyond K = {COMPONENTS_HURT_BEYOND}")
        tables.append(_u_table(subject.name, found))
        figures[f"u-shape-{subject.name}"] = _figure(found, draw_components)
    verdict: Verdict = "holds" if all(checks) else "holds in part" if any(checks) else "does not hold"
    about = {"queries": QUERIES, "components": list(COMPONENTS), "sigmas": list(U_SIGMAS), "seed": settings.seed}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, about)


@experiment(
    "minimal-rank",
    claim=f"{RANK_AT_10} eigenvalues a component explain a network's score at σ = 10 as well as all of them, the rank that "
    "suffices grows as σ falls, and for one component the closed form for Gaussian data predicts it",
    source="Wang & Vastola 2024, section 4.4 and figure 10B; the closed form follows from their equation 6",
    cost="about two minutes on one CPU core with both models",
)
def minimal_rank(settings: Settings) -> Outcome:
    """The smallest rank that leaves at most 1.1 times what full rank leaves, by level and number of components."""
    tables, figures, words, checks = [], {}, [], []
    for subject in subjects(settings):
        found = _sweep(subject, RANK_COMPONENTS, RANK_GRID, None)
        levels = range(len(found.sigmas))
        enough = _rank_at_10(found)
        if enough is not None:
            checks.append(enough <= ENOUGH)
            words.append(
                f"{subject.name}: at σ = 10 rank {RANK_AT_10} leaves at most {enough:.3f} times what full rank leaves"
            )
        else:
            words.append(f"{subject.name} has {found.dim} coordinates")
        ranks = {size: [found.minimal_rank(k, size) for k in levels] for size in found.components}
        grows = all(_grows(found.ranks, row) for row in ranks.values())
        one, predicted = ranks[1], [found.predicted_rank(k) or 1 for k in levels]
        factor = max(max(p, m, 1) / max(min(p, m), 1) for p, m in zip(predicted, one, strict=True))
        checks += [grows, factor <= PREDICTED_WITHIN]
        equal = sum(p == m for p, m in zip(predicted, one, strict=True))
        words.append(
            f"for K = 1 the rank that suffices goes from {one[0]} at σ = {found.sigmas[0]:g} to {one[-1]} at "
            f"σ = {found.sigmas[-1]:g}, and it {'grows' if grows else 'does not always grow'} for every K; for K = 1 the "
            f"closed form names that very rank at {equal} of {len(one)} levels and is off by a factor of at most {factor:.2g}, "
            f"its fractions below 1 by at most {_prediction_error(found):.0%}"
        )
        tables.append(_rank_table(subject.name, found))
        figures[f"minimal-rank-{subject.name}"] = _figure(found, draw_ranks)
    verdict: Verdict = "holds" if all(checks) else "holds in part" if any(checks) else "does not hold"
    about = {"queries": QUERIES, "components": list(RANK_COMPONENTS), "ranks": list(RANK_GRID), "seed": settings.seed}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, about)


def _sweep(
    subject: Subject, components: tuple[int, ...], ranks: tuple[int, ...], sigmas: tuple[float, ...] | None
) -> RankSweep:
    return rank_sweep(
        subject.model, subject.data, components=components, ranks=ranks, sigmas=sigmas, queries=QUERIES,
        seed=subject.seed, progress=subject.progress,
    )  # fmt: skip


def _rank_at_10(found: RankSweep) -> float | None:
    """The largest FUV[K][100]/FUV[K][full] at σ = 10; None where 100 is no rank below full."""
    if RANK_AT_10 not in found.ranks[:-1]:
        return None
    place, level = found.ranks.index(RANK_AT_10), found.sigmas.index(10.0)
    return max(row[place] / row[-1] for row in found.fuv[level])


def _grows(ranks: tuple[int, ...], row: list[int]) -> bool:
    """Whether ranks grow from the first to the last level and nowhere fall by more than a place of the list."""
    places = [ranks.index(rank) for rank in row]
    return places[-1] > places[0] and all(b >= a - 1 for a, b in itertools.pairwise(places))


def _prediction_error(found: RankSweep) -> float:
    """The largest relative error of the predicted FUV of K = 1 among all levels and ranks where it is below 1."""
    assert found.predicted is not None
    place = found.components.index(1)
    pairs = zip(found.predicted, (level[place] for level in found.fuv), strict=True)
    return max(abs(p / m - 1) for row, own in pairs for p, m in zip(row, own, strict=True) if 0 < m < 1)


def _u_table(name: str, found: RankSweep) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (s, *found.full(k), found.best_components(k), "yes" if found.is_u_shaped(k) else "no")
        for k, s in enumerate(found.sigmas)
    ]
    columns = ("σ", *(f"K = {c}" for c in found.components), "best K", "U")
    return Table(f"{name}: unexplained fraction of the score at full rank", columns, tuple(rows))


def _rank_table(name: str, found: RankSweep) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (s, *(found.minimal_rank(k, c) for c in found.components), found.predicted_rank(k), found.full(k)[0])
        for k, s in enumerate(found.sigmas)
    ]
    columns = ("σ", *(f"K = {c}" for c in found.components), "K = 1, predicted", "K = 1, full rank leaves")
    return Table(f"{name}: smallest rank within {ENOUGH:g} of full rank, of {found.dim}", columns, tuple(rows))


def _figure(found: RankSweep, draw: Any) -> Any:
    from farfield.analysis.plotting import axes_for

    (axes,) = axes_for(None, width=6.6, height=4.4)
    draw(found, axes)
    return axes.figure
