"""When do the sections between two samples split, beside the first critical time?"""

from __future__ import annotations

import math
from typing import Any

import torch

from farfield.analysis.potential import Potential
from farfield.analysis.potential_sections import MIDDLE, section_angles, section_curvature, section_values
from farfield.analysis.potential_sections_analysis import first_critical_time, sample_sections
from farfield.analysis.potential_sections_paths import split_times
from farfield.analysis.potential_sections_result import SampleSections
from farfield.analysis.tables import Table
from farfield.data import load
from farfield.distributions import Empirical
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment, figure_name
from farfield.interop import load as load_model
from farfield.processes import VP

#: Norms of two orthogonal points.
RADII = (0.5, 1.0, 2.0, 4.0)
#: The bundled model of a data set; the size of its images; samples, pairs, angles, steps and seeds that a few minutes
#: allow.
MODELS: dict[str, dict[str, Any]] = {
    "digits": {"load": {}, "n": 20, "pairs": 60, "angles": 65, "steps": 150, "seeds": 3},
    "cifar10": {"load": {"size": (16, 16)}, "n": 12, "pairs": 16, "angles": 33, "steps": 100, "seeds": 2},
}
#: Points of the exact law.
POINTS = 5000


def orthogonal_split(radius: float) -> float:
    """The time at which the section between two orthogonal points of a norm splits: ``θ² r² / (1 − θ²) = √2``.

    Along the circle of radius θ r the curvature at π/4 is ``k/√2 − k²/2`` in units of β, ``k = θ² r²/(1 − θ²)``.
    """
    return VP().time(radius * 2**-0.25)


def orthogonal_critical(radius: float) -> float:
    """Their critical time: half the squared distance of two points along one direction, λ = r²/2, B = asinh λ."""
    return VP().time(math.sqrt(math.expm1(math.asinh(radius**2 / 2))))


def _two_points() -> tuple[Table, float]:
    """Measured splits of two orthogonal points beside the closed form, and the largest deviation in time."""
    process, rows, worst = VP(), [], 0.0
    scan = [0.02 + 0.06 * k for k in range(16)]
    for radius in RADII:
        points = radius * torch.eye(2, dtype=torch.float64)
        potential = Potential(Empirical(points), process)

        def curved(t: torch.Tensor, potential: Potential = potential, points: torch.Tensor = points) -> torch.Tensor:
            first, second = (process.alpha(t)[:, None] * p for p in points)
            return section_curvature(potential, first, second, t, angle=MIDDLE) > 0

        def wells(t: torch.Tensor, potential: Potential = potential, points: torch.Tensor = points) -> torch.Tensor:
            first, second = (process.alpha(t)[:, None] * p for p in points)
            values = section_values(potential, first, second, t, section_angles(401), rule="trapezoid")
            inner = (values[:, 1:-1] < values[:, :-2]) & (values[:, 1:-1] <= values[:, 2:])
            return inner.sum(1) < 2

        bend, well = (float(split_times(rule, scan, 1e-6)) for rule in (curved, wells))
        exact = orthogonal_split(radius)
        worst = max(worst, abs(bend - exact), abs(well - exact))
        rows.append((radius, exact, bend, well, orthogonal_critical(radius)))
    columns = ("norm r", "split, closed form", "measured: curvature", "measured: wells", "critical time")
    return Table("two orthogonal points: forward time s at which their section splits", columns, tuple(rows)), worst


def _row(name: str, seed: int, found: SampleSections) -> tuple[Any, ...]:
    law = found.laws
    values = [law[kind].median_split for kind in ("model", "data")] + [law[kind].split for kind in ("model", "data")]
    shown = [v if math.isfinite(v) and v > 0 else None for v in values]  # None: never, or from the start
    return (name, seed, found.pairs, *shown, found.critical)


@experiment(
    "potential-split",
    claim="The section of the potential between two generated samples splits into wells later in generation than the "
    "first critical time of the data",
    source="Raya & Ambrogioni 2023, section 4.2 and figures 14 to 17",
    cost="about five minutes on two cores",
)
def potential_split(settings: Settings) -> Outcome:
    """Two points in closed form, then the bundled models beside the exact law of their data."""
    theory, worst = _two_points()
    columns = (
        "model", "seed", "pairs", "pairs' median, model", "pairs' median, data law", "average, model",
        "average, data law", "critical time",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {}
    later: list[bool] = []
    words: list[str] = []
    names = [name for name in available(settings.data or tuple(MODELS), settings.progress) if name in MODELS]
    for name in names:
        size = MODELS[name]
        data = load(name, split="train", labels=False, **size["load"]).images[:POINTS]
        critical = first_critical_time(data, seed=settings.seed)
        model, averages, never = load_model(name), list[float](), list[float]()
        for seed in range(settings.seed, settings.seed + size["seeds"]):
            found = sample_sections(
                model,
                data,
                n=size["n"],
                pairs=size["pairs"],
                angles=size["angles"],
                steps=size["steps"],
                critical=critical,
                seed=seed,
            )
            rows.append(_row(name, seed, found))
            averages.append(found.laws["model"].split)
            never.append(float(found.laws["model"].splits.isnan().double().mean()))
            if critical is not None:
                later += [law.split < critical and law.median_split < critical for law in found.laws.values()]
            if seed == settings.seed:
                figures[figure_name("potential", name)] = found.plot()
        spread = f"{min(averages):.3f} to {max(averages):.3f}"
        beside = "no critical time" if critical is None else f"critical time {critical:.3f}"
        lost = f", {sum(never) / len(never):.0%} of the pairs never have two wells" if any(never) else ""
        words.append(f"{name}: the average splits at s = {spread}, {beside}{lost}")
    right = worst < 2e-3
    turning = next((r for r in RADII if orthogonal_split(r) < orthogonal_critical(r)), math.inf)
    verdict: Verdict = (
        "holds" if right and later and all(later) else "does not hold" if not any(later) else "holds in part"
    )
    because = (
        f"two orthogonal points split within {worst:.1g} of the closed form, later than their critical time from a norm of "
        f"{turning:g} on and earlier below; {'; '.join(words)}"
    )
    tables = [theory, Table("bundled models: forward time s at which sections split", columns, tuple(rows))]
    return Outcome(verdict, because, tuple(tables), figures, {"seed": settings.seed, "points": POINTS, "data": names})
