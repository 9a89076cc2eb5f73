"""Are sampling trajectories straight, and their denoiser outputs' not? On networks, and on a replica of CIFAR-10's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from farfield.analysis.entrants import baseline
from farfield.analysis.shape import shape_statistics
from farfield.analysis.shape_result import (
    PUBLISHED_COSINE,
    PUBLISHED_DENOISED_PEAK,
    PUBLISHED_DENOISED_RATIO,
    PUBLISHED_PEAK,
    PUBLISHED_RATIO,
    TrajectoryShape,
    spread,
)
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.experiments.base import Outcome, Settings, Verdict, experiment, figure_name
from farfield.interop import load as load_model
from farfield.numerics import streams

#: The replica: points of Gaussian-like data of low rank in 3072 dimensions, as long as images of CIFAR-10 in [−1, 1].
REPLICA = "replica"
POINTS, DIM, RANK, NORM = 1000, 3072, 40, 27.7
#: Eigenvalues fall like k^−1.5, about as those of natural images do.
DECAY = 1.5
#: Trajectories of each seed, by subject.
TRAJECTORIES: dict[str, int] = {"digits": 256, "cifar10": 40, REPLICA: 32}
#: A ratio counts as the published one's within this factor; a peak too. The cosine may fall short by this much.
FACTOR, SLACK = 2.0, 0.02


def replica(seed: int, points: int = POINTS, dim: int = DIM, rank: int = RANK, norm: float = NORM) -> Tensor:
    """Points ``Σ_k sqrt(λ_k) z_k u_k`` with λ_k ∝ k^−1.5, Σ λ_k = norm², z normal, u orthonormal: (points, dim) float32.

    Args:
        seed: of directions and points.
        points, dim, rank: how many points, in how many dimensions, in a subspace of how many.
        norm: root mean square of their norms.
    """
    scales = torch.arange(1, rank + 1, dtype=torch.float64) ** -DECAY
    scales = norm * (scales / scales.sum()).sqrt()
    raw = streams.normal(seed, range(rank), (dim,), purpose="replica directions", dtype=torch.float64)
    directions, _ = torch.linalg.qr(raw.T)
    z = streams.normal(seed, range(points), (rank,), purpose="replica points", dtype=torch.float64)
    return ((z * scales) @ directions.T).float()


def _subject(name: str, seed: int) -> Denoiser:
    return Empirical(replica(seed)) if name == REPLICA else load_model(name)


def _row(name: str, seed: int, s: TrajectoryShape) -> tuple[Any, ...]:
    low, high = s.straightness_interval
    r_low, r_high = s.denoised_straightness_interval
    words = f"{low:.2g} to {high:.2g}", f"{r_low:.2g} to {r_high:.2g}"
    single = (s.closer, s.denoised_closer)
    falls = "yes" if s.monotone and s.denoised_monotone else "no"
    return (
        name, seed, s.straightness, words[0], s.turning_point, s.denoised_straightness, words[1], s.denoised_turning_point,
        s.lowest_cosine, falls, *single, s.bound_violations,
    )  # fmt: skip


def verdicts(shapes: list[TrajectoryShape]) -> dict[str, bool]:
    """Which parts of the claim all repetitions of a subject bear out."""

    def near(value: float, published: float) -> bool:
        return published / FACTOR <= value <= published * FACTOR

    return {
        "ratio of the states": all(near(s.straightness, PUBLISHED_RATIO) for s in shapes),
        "ratio of the outputs": all(near(s.denoised_straightness, PUBLISHED_DENOISED_RATIO) for s in shapes),
        "peak of the states": all(near(s.turning_point, PUBLISHED_PEAK) for s in shapes),
        "peak of the outputs": all(near(s.denoised_turning_point, PUBLISHED_DENOISED_PEAK) for s in shapes),
        "outputs turn later": all(s.denoised_turning_point < s.turning_point for s in shapes),
        "cosine": all(s.lowest_cosine >= PUBLISHED_COSINE - SLACK for s in shapes),
        "closer in expectation": all(s.monotone and s.denoised_monotone for s in shapes),
    }


@experiment(
    "straightness",
    claim="Sampling trajectories are nearly straight and denoising trajectories are not: the largest mean deviation is 0.0036 "
    "and 0.27 of the distance between the ends, at σ near 10 and 5, with cosines of 0.98 to 1; both come closer to their ends "
    "in expectation",
    source="Chen et al., A geometric perspective on diffusion models, section 3, observations 1 and 2, Figs. 2 and 14",
    cost="about three minutes on two cores",
    repeats=True,
)
def straightness(settings: Settings) -> Outcome:
    """The bundled networks and the replica, each with several seeds."""
    names = list(settings.data or TRAJECTORIES)
    unknown = [name for name in names if name not in TRAJECTORIES]
    if unknown:
        raise ArgumentError(f"data = {', '.join(unknown)}; this experiment knows {', '.join(TRAJECTORIES)}")
    rows: list[tuple[Any, ...]] = []
    parts: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {}
    words: list[str] = []
    held: list[bool] = []
    for name in names:
        shapes: list[TrajectoryShape] = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            model = _subject(name, seed)
            found = shape_statistics(
                model, baseline(model), TRAJECTORIES[name], seed, batch_size=128, progress=settings.progress
            )
            shapes.append(found)
            rows.append(_row(name, seed, found))
        figures[figure_name("straightness", name)] = shapes[0].plot()
        found_parts = verdicts(shapes)
        parts += [(name, part, "yes" if holds else "no") for part, holds in found_parts.items()]
        held += list(found_parts.values())
        lost = [part for part, holds in found_parts.items() if not holds]
        ratios = spread([s.straightness for s in shapes]), spread([s.denoised_straightness for s in shapes])
        peaks = spread([s.turning_point for s in shapes]), spread([s.denoised_turning_point for s in shapes])
        words.append(
            f"{name}: ratios {ratios[0]} and {ratios[1]}, peaks at σ = {peaks[0]} and {peaks[1]}, cosine at least "
            f"{min(s.lowest_cosine for s in shapes):.3f}" + (f" (not: {', '.join(lost)})" if lost else "")
        )
    columns = (
        "subject", "seed", "ratio, states", "95 %", "peak σ", "ratio, outputs", "95 %", "peak σ", "smallest mean cosine",
        "closer in expectation", "single paths", "single paths of outputs", "bound violations",
    )  # fmt: skip
    title = (
        f"shape of trajectories of Heun on 18 Karras levels; published {PUBLISHED_RATIO} and {PUBLISHED_DENOISED_RATIO}"
    )
    tables = (
        Table(title, columns, tuple(rows)),
        Table(
            f"the parts of the claim, numbers within a factor of {FACTOR:g}", ("subject", "part", "holds"), tuple(parts)
        ),
    )
    verdict: Verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    used = {"seed": settings.seed, "seeds": settings.seeds, "data": names, "trajectories": TRAJECTORIES}
    return Outcome(verdict, "; ".join(words), tables, figures, used)
