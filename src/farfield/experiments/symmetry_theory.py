"""Two points and the hypersphere: the closed forms beside the general routine, and beside simulated reverse processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.critical_closed_form import critical_time_closed_form
from farfield.analysis.critical_times import critical_times
from farfield.analysis.fixed_points import fixed_point_on_ray
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, marker_line
from farfield.analysis.reverse_sde import simulate_reverse
from farfield.analysis.tables import Table
from farfield.distributions import Distribution, Empirical, toy
from farfield.experiments.base import Outcome, Settings, Verdict, experiment
from farfield.processes import VP

#: Dimension and radius; one dimension is two points.
SPHERES: tuple[tuple[int, float], ...] = ((1, 1.0), (2, 1.0), (3, 2.0), (10, math.sqrt(10)), (100, 10.0))
#: Those whose reverse SDE is simulated: paths and steps.
SIMULATED: Mapping[tuple[int, float], tuple[int, int]] = {(1, 1.0): (8000, 1000), (3, 2.0): (4000, 1000)}
#: Forward times at which the states are compared with theory.
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
#: Signal scales at which stable radii are compared.
THETAS = (0.6, 0.7, 0.8, 0.9)
#: What is tolerated: so many standard errors, of the largest of some twenty, and the error of Euler and Maruyama's rule.
ERRORS, DISCRETE = 4.0, 0.01


def law_of(dim: int, radius: float) -> Distribution:
    """Two points at ±radius in one dimension, the uniform law on the sphere in more."""
    if dim == 1:
        return Empirical(torch.tensor([[radius], [-radius]], dtype=torch.float64))
    return toy("sphere", dim=dim, radius=radius)


def stable_radius(dim: int, radius: float, theta: float) -> float:
    """The ρ > 0 with ``ρ (1 + q)/(2θ) = r A_D(θ r ρ/v)``, A_D a ratio of Bessel functions; 0 where there is none (θ ≤ θ_c)."""
    from scipy.optimize import brentq

    q, v = theta**2, 1 - theta**2
    if q**2 + 2 * q * radius**2 / dim <= 1:
        return 0.0

    def gap(rho: float) -> float:
        return radius * bessel_ratio(dim, theta * radius * rho / v) - rho * (1 + q) / (2 * theta)

    return float(brentq(gap, 1e-9, 2 * radius, xtol=1e-13))


def bessel_ratio(dim: int, kappa: float) -> float:
    """``A_D(κ) = I_{D/2}(κ)/I_{D/2−1}(κ)`` by its continued fraction, from the tail: a way of its own, beside the library's."""
    depth = int(kappa) + 60
    value = 0.0
    for k in range(depth, -1, -1):
        value = 1 / ((dim + 2 * k) / kappa + value)
    return value


def _critical() -> tuple[Table, float]:
    """Critical times in closed form and by the general routine; the largest relative difference in σ."""
    rows, worst = [], 0.0
    for dim, radius in SPHERES:
        exact = critical_time_closed_form(radius**2 / dim)
        found = critical_times(law_of(dim, radius), check=False, tolerance=1e-6).first
        assert exact is not None
        assert found is not None
        worst = max(worst, abs(found.sigma / exact.sigma - 1))
        rows.append((dim, radius, exact.theta, found.theta, exact.time, found.time, exact.index))
    columns = ("dimension", "radius", "θ_c, closed form", "θ_c, found", "s_c, closed form", "s_c, found", "index")
    return Table("critical times of the reverse SDE", columns, tuple(rows)), worst


def _radii() -> tuple[Table, float]:
    """Stable radii by the self-consistency equation and on the law itself; the largest difference over r."""
    rows, worst = [], 0.0
    for dim, radius in SPHERES:
        law, found = law_of(dim, radius), []
        for theta in THETAS:
            sigma = math.sqrt(1 / theta**2 - 1)
            exact = stable_radius(dim, radius, theta)
            measured = fixed_point_on_ray(law, sigma, torch.ones(dim, dtype=torch.float64))
            worst = max(worst, abs(measured - exact) / radius)
            found += [exact, measured]
        rows.append((dim, radius, *found))
    columns = ("dimension", "radius", *(f"θ = {theta:g}{kind}" for theta in THETAS for kind in ("", ", found")))
    return Table("stable radius: self-consistency, and fixed point of the law", columns, tuple(rows)), worst


def _simulate(dim: int, radius: float, paths: int, steps: int, seed: int) -> tuple[list[tuple[Any, ...]], float]:
    """Agreement with the final state at each time, theory and simulation; the largest excess over the tolerated error.

    In the stationary pair of a noised state x and its datum y, ``E x·y = θ r²``, and of two points
    ``P(sign x = sign y) = Φ(θ r/sqrt v)``; a reverse SDE that is simulated well has both between its states and its ends.
    """
    process, law = VP(), law_of(dim, radius)
    keep = [round((1 - s) * steps) for s in reversed(TIMES)]
    made = simulate_reverse(law, paths, process, steps=steps, keep=keep, seed=seed)
    rows, excess = [], 0.0

    def compare(quantity: str, s: float, exact: float, sample: Tensor) -> None:
        nonlocal excess
        mean, error = float(sample.mean()), float(sample.std()) / math.sqrt(len(sample))
        excess = max(excess, abs(mean - exact) / (ERRORS * error + DISCRETE))
        rows.append((dim, radius, quantity, s, exact, mean, error))

    for s, x in zip(made.times[:-1].tolist(), made.states[:-1], strict=True):
        theta = float(process.alpha(s))
        compare("overlap x·y/r²", s, theta, (x * made.x).sum(1) / radius**2)
        if dim == 1:
            chance = float(
                torch.special.ndtr(torch.tensor(theta * radius / math.sqrt(1 - theta**2), dtype=torch.float64))
            )
            compare("same sign", s, chance, (x[:, 0] * made.x[:, 0] > 0).double())
    compare("final radius/r", 0.0, 1.0, made.x.norm(dim=1) / radius)
    return rows, excess


def _ode(seed: int) -> tuple[tuple[Any, ...], float]:
    """Under the probability-flow ODE the first draw decides between two points: the share of paths that keep its sign."""
    z = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).unsqueeze(1)
    made = simulate_reverse(law_of(1, 1.0), 1000, dynamics="ode", steps=1000, initial=z, seed=seed)
    kept = float((made.x * z > 0).double().mean())
    return (1, 1.0, "ODE: same sign", 1.0, 1.0, kept, 0.0), 1 - kept


@experiment(
    "symmetry-theory",
    claim="For two points and the hypersphere the critical time, the stable states beyond it, and how far a state on the way "
    "has decided are what theory says, for the general routine and for simulated reverse processes",
    source="Raya & Ambrogioni 2023, section 3 and supplement A.2 and A.3 (Eq. 41 corrected)",
    cost="about half a minute on one CPU core",
)
def symmetry_theory(settings: Settings) -> Outcome:
    """Closed forms, general routine and simulation side by side."""
    return compare_theory(settings, SIMULATED)


def compare_theory(settings: Settings, simulated: Mapping[tuple[int, float], tuple[int, int]]) -> Outcome:
    """The experiment with other numbers of paths and steps; two points are always among them."""
    times, off_times = _critical()
    radii, off_radii = _radii()
    rows: list[tuple[Any, ...]] = []
    excess = 0.0
    for (dim, radius), (paths, steps) in simulated.items():
        found, over = _simulate(dim, radius, paths, steps, settings.seed)
        rows, excess = rows + found, max(excess, over)
    ode, lost = _ode(settings.seed)
    columns = ("dimension", "radius", "quantity", "s", "theory", "simulation", "± 1 s.e.")
    simulation = Table("reverse processes, simulated by Euler and Maruyama's rule", columns, (*rows, ode))
    right = (off_times < 1e-4, off_radii < 1e-6, excess < 1, lost < 1e-9)
    verdict: Verdict = "holds" if all(right) else "holds in part" if any(right) else "does not hold"
    decided = next(row for row in rows if row[2] == "same sign" and row[3] == min(TIMES, key=lambda s: abs(s - 0.3)))
    because = (
        f"critical levels agree to {off_times:.1g}, stable radii to {off_radii:.1g} of r; at s = {decided[3]:.2g}, near the "
        f"critical time of two points, {100 * decided[5]:.1f} % of the simulated paths have the sign they end with "
        f"({100 * decided[4]:.1f} % in theory), and the largest deviation of a simulation is {excess:.2f} of what is tolerated"
    )
    figures = {"theory": _figure(rows)}
    told = {"seed": settings.seed, "simulated": [[d, r, *size] for (d, r), size in simulated.items()]}
    return Outcome(verdict, because, (times, radii, simulation), figures, told)


def _figure(rows: list[tuple[Any, ...]]) -> Any:
    """Left: stable radii by θ; right: how far a state has decided, theory as lines and simulation as points."""
    left, right = axes_for(None, 2, width=10.4, height=4.2)
    grid = [0.3 + 0.695 * k / 139 for k in range(140)]
    for k, (dim, radius) in enumerate(SPHERES[:4]):
        name = "two points" if dim == 1 else f"D = {dim}, r = {radius:.3g}"
        left.plot(
            grid, [stable_radius(dim, radius, t) / radius for t in grid], color=PALETTE[k], linewidth=1.8, label=name
        )
        law = law_of(dim, radius)
        found = [fixed_point_on_ray(law, math.sqrt(1 / t**2 - 1), torch.ones(dim, dtype=torch.float64)) for t in THETAS]
        left.plot(THETAS, [f / radius for f in found], "o", color=PALETTE[k], markersize=5)
    dress(left, "signal scale θ", "stable radius over r", "lines: self-consistency; points: found")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    process = VP()
    s = torch.linspace(0.005, 0.95, 120, dtype=torch.float64)
    theta = process.alpha(s)
    right.plot(s, torch.special.ndtr(theta / (1 - theta**2).sqrt()), color=PALETTE[0], label="two points: same sign")
    right.plot(s, theta, color=PALETTE[1], label="overlap x·y/r²: θ")
    for row in rows:
        if row[2] in ("same sign", "overlap x·y/r²"):
            colour = PALETTE[0] if row[2] == "same sign" else PALETTE[1]
            marker = "o" if row[0] == 1 else "s"
            right.errorbar([row[3]], [row[5]], yerr=[2 * row[6]], fmt=marker, color=colour, markersize=5, capsize=2)
    right.axhline(0.5, color=INK, alpha=0.3, linewidth=0.8)
    exact = critical_time_closed_form(1.0)
    if exact is not None:
        marker_line(right, exact.time, f"two points: s = {exact.time:.3g}", 0.06)
    dress(right, "forward time s", "agreement with the end", "circles: two points; squares: D = 3, r = 2")
    right.legend(frameon=False, fontsize=8)
    return right.figure
