"""The samplers that a solver comparison sets side by side, each a template that ``Sampler.with_nfe`` plans to a budget.

Families: Euler (DDIM), Heun (EDM), DPM-Solver++(2M), the isotropic exponential multistep rule (DEIS family), a teleport along
the data's Gaussian flow followed by Heun or DPM-Solver++(2M) (Wang & Vastola 2024), the whitened solver, and a teleport
followed by it. Grids: Karras ρ = 7, uniform in log-SNR, and for the whitened solver the one from the data's spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.sampling import Grid, Prior, Sampler, Start, Teleport, karras, log_snr, spectral
from farfield.sampling.solvers import Whitened

#: The published default of EDM: Heun on 18 Karras levels, 35 evaluations.
BASELINE_LEVELS = 18


@dataclass(frozen=True, eq=False)
class Entrant:
    """One sampler of a comparison.

    Attributes:
        family: what curves are drawn for: the solver, with or without a teleport.
        detail: what tells the members of a family apart: order, grid, level of the teleport.
        sampler: the template; its number of levels is replaced to meet a budget.
    """

    family: str
    detail: str
    sampler: Sampler

    @property
    def name(self) -> str:
        """Family and detail."""
        return f"{self.family}, {self.detail}" if self.detail else self.family


def sigma_range(denoiser: Denoiser) -> tuple[float, float]:
    """The lowest and highest level at which a model is sampled: 0.002 to 80, or less where the model's range is."""
    return max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)


def baseline(denoiser: Denoiser) -> Sampler:
    """EDM's default within the model's range: Heun on 18 Karras levels (Karras et al. 2022)."""
    low, high = sigma_range(denoiser)
    return Sampler("heun", karras(BASELINE_LEVELS, low, high))


def default_entrants(
    denoiser: Denoiser, gaussian: Gaussian | None = None, teleports: Sequence[float] = (), quick: bool = False
) -> list[Entrant]:
    """The usual comparison.

    Args:
        denoiser: the model, for its range of noise levels.
        gaussian: the data's Gaussian; without one there are no teleports and no whitened rows.
        teleports: levels to which the noise is carried along the Gaussian flow.
        quick: one grid and one teleport only.
    """
    low, high = sigma_range(denoiser)
    k7 = karras(BASELINE_LEVELS, low, high)
    log = log_snr(BASELINE_LEVELS, low, high)
    grids: list[tuple[str, Grid]] = [("Karras ρ=7", k7)] if quick else [("Karras ρ=7", k7), ("log-SNR", log)]
    # Every multistep family gets the data's grid too, so that what the whitened solver gains is not the grid's doing.
    wide = list(grids)
    if gaussian is not None:
        wide.append(("spectral", spectral(BASELINE_LEVELS, gaussian, low, high)))
    rows = [Entrant("Euler (DDIM)", "Karras ρ=7", Sampler("euler", k7))]
    rows += [Entrant("Heun", name, Sampler("heun", grid)) for name, grid in grids]
    rows += [Entrant("DPM-Solver++(2M)", name, Sampler("dpmpp_2m", grid)) for name, grid in wide]
    rows += [Entrant("exponential", f"order 2, {name}", Sampler(Whitened(2), grid)) for name, grid in wide]
    rows += [Entrant("exponential", f"order 3, {name}", Sampler(Whitened(3), grid)) for name, grid in wide]
    if gaussian is None:
        return rows
    levels = [s for s in dict.fromkeys(float(t) for t in teleports) if low < s < high]
    starts: list[tuple[float, Start]] = [(s, Teleport(gaussian, s)) for s in (levels[:1] if quick else levels)]
    follows = wide[-1]
    for sigma, start in starts[:1]:
        rows.append(Entrant("teleport + Heun", f"from σ={sigma:.2g}, Karras ρ=7", Sampler("heun", k7, start)))
        for name, grid in (grids[0], follows):
            sampler = Sampler("dpmpp_2m", grid, start)
            rows.append(Entrant("teleport + DPM++(2M)", f"from σ={sigma:.2g}, {name}", sampler))
    for order in (3,) if quick else (2, 3):
        for name, grid in (follows,) if quick else wide:
            sampler = Sampler(Whitened(order), grid, covariance=gaussian)
            rows.append(Entrant("whitened", f"order {order}, {name}", sampler))
    for sigma, start in starts:
        # A level below the first is worth a try with few evaluations, where order 2 is the safer one.
        for order in (3,) if quick else (2, 3) if sigma == starts[0][0] else (2,):
            sampler = Sampler(Whitened(order), follows[1], start, covariance=gaussian)
            rows.append(Entrant("teleport + whitened", f"order {order}, from σ={sigma:.2g}, spectral", sampler))
    return rows


def describe(sampler: Sampler) -> dict[str, Any]:
    """A sampler without its Gaussians, JSON-safe and short: what a table needs, not what a run needs."""
    start = {k: v for k, v in sampler.start.__dict__.items() if isinstance(v, int | float | str)}
    return {
        "solver": sampler.rule.to_dict(),
        "sigmas": sampler.grid.to_dict(),
        "start": {"name": sampler.start.name, **start},
        "finish": sampler.finish.to_dict(),
        "noise": None if sampler.noise is None else sampler.noise.to_dict(),
        "guidance": [part.name for part in sampler.parts],
        "covariance": sampler.covariance is not None,
        "nfe": sampler.nfe,
    }


def in_words(sampler: Sampler) -> str:
    """A sampler in one line, e.g. ``whitened (order 3) on 8 Karras levels (ρ = 7) after a teleport to σ = 4.1``."""
    solver = sampler.rule.to_dict()
    order = f" (order {solver['order']})" if "order" in solver else ""
    name = {"euler": "Euler (DDIM)", "heun": "Heun", "dpmpp_2m": "DPM-Solver++(2M)"}.get(solver["name"], solver["name"])
    if solver["name"] == "whitened" and sampler.covariance is None:
        name = "exponential multistep"
    grid = sampler.grid.to_dict()
    kind = {"karras": "Karras", "log_snr": "log-SNR", "vp_time": "VP-time", "ddpm": "DDPM"}.get(
        grid["name"], grid["name"]
    )
    rho = f" (ρ = {grid['rho']:g})" if "rho" in grid else ""
    count = len([s for s in sampler.levels if s > 0])
    text = f"{name}{order} on {count} {kind} level{'s' if count != 1 else ''}{rho}"
    if not isinstance(sampler.start, Prior) and hasattr(sampler.start, "sigma"):
        text += f" after a {sampler.start.name.replace('_', ' ')} to σ = {sampler.start.sigma:.3g}"
    if sampler.noise is not None:
        text += f" with {sampler.noise.name} noise"
    if sampler.guidance:
        text += f", guided ({', '.join(part.name for part in sampler.parts)})"
    return text
