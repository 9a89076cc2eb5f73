"""The samplers that a solver comparison sets side by side, each a template that ``Sampler.with_nfe`` plans to a budget.

Families: Euler (DDIM), Heun (EDM), DPM-Solver++(2M), UniPC, DEIS, iPNDM, the isotropic exponential multistep rule, a teleport
along the data's Gaussian flow followed by Heun or DPM-Solver++(2M) (Wang & Vastola 2024), the whitened solver, and a teleport
followed by it. Grids: Karras ρ = 7, uniform in log-SNR, and the one from the data's spectrum.

:func:`default_entrants` are the few that a report has time for; :func:`all_entrants` are every solver of the registry with
its usual options on every grid, so that each can be shown at its best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, unknown_name
from farfield.sampling import Grid, Prior, Sampler, Start, Teleport, karras, log_snr, spectral
from farfield.sampling.solvers import DEIS, IPNDM, PLANNED, UniPC, Whitened, make_solver

#: What the solvers of the registry are called in tables and sentences.
NAMES: Mapping[str, str] = {
    "euler": "Euler (DDIM)",
    "heun": "Heun",
    "dpm2": "DPM-Solver-2",
    "dpm3": "DPM-Solver-3",
    "dpmpp_2s": "DPM-Solver++(2S)",
    "dpmpp_2m": "DPM-Solver++(2M)",
    "taylor2": "Taylor 2",
    "dpmpp_3m": "DPM-Solver++(3M)",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lms": "LMS",
    "ipndm_v": "iPNDM-v",
    "ipndm": "iPNDM",
    "spndm": "S-PNDM",
    "plms": "PLMS",
    "pndm": "PNDM",
    "rk45": "RK45",
    "whitened": "whitened",
}

#: The grids of :func:`all_entrants` in words, by the names that options take.
GRIDS: Mapping[str, str] = {
    "karras": "Karras ρ=7",
    "karras12": "Karras ρ=12",
    "log_snr": "log-SNR",
    "spectral": "spectral",
}
#: Those that a comparison has time for: ρ = 12 lies between the first two and seldom beats both.
COMPARED = ("karras", "log_snr", "spectral")
#: The letters that tables put behind a number.
LETTERS: Mapping[str, str] = {"Karras ρ=7": "K", "Karras ρ=12": "R", "log-SNR": "L", "spectral": "S"}

#: Options tried in :func:`all_entrants`, with the words that tell them apart; solvers not named here have their defaults.
VARIANTS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "dpmpp_3m": (("published", {}), ("exact, corrected start", {"curvature": "exact", "start": "corrected"})),
    "unipc": (
        ("bh1, 2 points", {"points": 2, "variant": "bh1"}),
        ("bh2, 2 points", {"points": 2, "variant": "bh2"}),
        ("bh2, 3 points", {"points": 3, "variant": "bh2"}),
    ),
    "deis": (
        ("tab, 3 points", {"points": 3, "variant": "tab"}),
        ("tab, 4 points", {"points": 4, "variant": "tab"}),
        ("logrho, 3 points", {"points": 3, "variant": "logrho"}),
    ),
    "lms": (("3 points", {"points": 3}), ("4 points", {"points": 4})),
    "ipndm_v": (("3 points", {"points": 3}), ("4 points", {"points": 4})),
    "ipndm": (("3 points", {"points": 3}), ("4 points", {"points": 4})),
    "whitened": (("order 2", {"order": 2}), ("order 3", {"order": 3})),
}

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
    # Every multistep family gets the data's grid too, so that what the whitened solver gains is not the grid's doing.
    wide: list[tuple[str, Grid]] = [("Karras ρ=7", k7)]
    if not quick:
        wide.append(("log-SNR", log_snr(BASELINE_LEVELS, low, high)))
    if gaussian is not None:
        wide.append(("spectral", spectral(BASELINE_LEVELS, gaussian, low, high)))
    follows = wide[-1]
    rows = [Entrant("Euler (DDIM)", "Karras ρ=7", Sampler("euler", k7))]
    rows.append(Entrant("Heun", "Karras ρ=7", Sampler("heun", k7)))
    rows += [Entrant("DPM-Solver++(2M)", name, Sampler("dpmpp_2m", grid)) for name, grid in wide]
    rows.append(Entrant("exponential", f"order 2, {follows[0]}", Sampler(Whitened(2), follows[1])))
    # The strongest of the registry's others, with the options that did best in the solver table.
    for rule in (UniPC(2), DEIS("tab", 4), IPNDM(3)):
        words = f"{rule.points} points, {follows[0]}"
        rows.append(Entrant(NAMES[rule.name], words, Sampler(rule, follows[1])))
    if gaussian is None:
        return rows
    levels = [s for s in dict.fromkeys(float(t) for t in teleports) if low < s < high]
    starts: list[tuple[float, Start]] = [(s, Teleport(gaussian, s)) for s in (levels[:1] if quick else levels)]
    for sigma, start in starts[:1]:
        rows.append(Entrant("teleport + Heun", f"from σ={sigma:.2g}, Karras ρ=7", Sampler("heun", k7, start)))
        sampler = Sampler("dpmpp_2m", wide[0][1], start)
        rows.append(Entrant("teleport + DPM++(2M)", f"from σ={sigma:.2g}, {wide[0][0]}", sampler))
    for order in (3,) if quick else (2, 3):
        # The other grids are there to show what the data's own is worth.
        for name, grid in (follows,) if quick or order == 3 else wide:
            sampler = Sampler(Whitened(order), grid, covariance=gaussian)
            rows.append(Entrant("whitened", f"order {order}, {name}", sampler))
    for sigma, start in starts:
        # A level below the first is worth a try with few evaluations, where order 2 is the safer one.
        order = 3 if quick or sigma == starts[0][0] else 2
        sampler = Sampler(Whitened(order), follows[1], start, covariance=gaussian)
        rows.append(Entrant("teleport + whitened", f"order {order}, from σ={sigma:.2g}, spectral", sampler))
    return rows


def all_entrants(
    denoiser: Denoiser,
    gaussian: Gaussian | None = None,
    *,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = COMPARED,
    teleports: Sequence[float] = (),
) -> list[Entrant]:
    """Every solver whose evaluations are known before a run, with its usual options, on every grid.

    The whitened solver stands there twice: as ``exponential`` without a Gaussian, which makes it one of the isotropic
    exponential rules, and as ``whitened`` with one. Solvers with steps of their own are compared by tolerance instead; see
    :func:`farfield.analysis.solver_frechet.adaptive_rows`.

    Args:
        denoiser: the model, for its range of noise levels.
        gaussian: the data's Gaussian; without one there is no whitened row, no teleport and no spectral grid.
        solvers: names of the registry; all by default.
        grids: names of :data:`GRIDS`; ρ = 12 only where it is asked for.
        teleports: levels from which whitened steps and DPM-Solver++(2M) start as well, after the Gaussian's exact flow.

    Returns:
        The entrants, solver by solver; ``family`` is the solver's name of :data:`NAMES` and ``detail`` its options and grid.

    Raises:
        ArgumentError: for an unknown solver or grid, one that is adaptive, or nothing left to compare.
    """
    for name in solvers:
        if name not in PLANNED:
            raise unknown_name("solver with planned evaluations", name, PLANNED)
    for name in grids:
        if name not in GRIDS:
            raise unknown_name("grid", name, GRIDS)
    low, high = sigma_range(denoiser)
    made: dict[str, Grid] = {
        "karras": karras(BASELINE_LEVELS, low, high),
        "karras12": karras(BASELINE_LEVELS, low, high, 12.0),
        "log_snr": log_snr(BASELINE_LEVELS, low, high),
    }
    if gaussian is not None:
        made["spectral"] = spectral(BASELINE_LEVELS, gaussian, low, high)
    used = {GRIDS[name]: made[name] for name in grids if name in made}
    if not used:
        raise ArgumentError(f"grids = {list(grids)}: the spectral one needs the data's Gaussian, and no other is left")
    chosen = [name for name in PLANNED if not solvers or name in solvers]
    rows = []
    for name in chosen:
        for words, options in VARIANTS.get(name, (("", {}),)):
            rule = make_solver(name, **options)
            details = {grid: f"{words}, {grid}" if words else grid for grid in used}
            family = "exponential" if name == "whitened" else NAMES[name]
            rows += [Entrant(family, details[grid], Sampler(rule, used[grid])) for grid in used]
            if name == "whitened" and gaussian is not None:
                rows += [
                    Entrant(NAMES[name], details[grid], Sampler(rule, used[grid], covariance=gaussian)) for grid in used
                ]
    if gaussian is None:
        return rows
    for sigma in dict.fromkeys(float(t) for t in teleports):
        if not low < sigma < high:
            continue
        start, where = Teleport(gaussian, sigma), f"from σ={sigma:.2g}"
        for grid in used:
            if "dpmpp_2m" in chosen:
                rows.append(Entrant("teleport + DPM++(2M)", f"{where}, {grid}", Sampler("dpmpp_2m", used[grid], start)))
            if "whitened" in chosen:
                sampler = Sampler(Whitened(2), used[grid], start, covariance=gaussian)
                rows.append(Entrant("teleport + whitened", f"order 2, {where}, {grid}", sampler))
    order = {family: k for k, family in enumerate(dict.fromkeys(row.family for row in rows))}
    return sorted(rows, key=lambda row: order[row.family])


def planned_nfe(sampler: Sampler) -> int | None:
    """The evaluations of a sampler, or None where it chooses its own steps and they are known only after a run."""
    return None if sampler.rule.adaptive else sampler.nfe


def grid_letter(sampler: Sampler) -> str:
    """The letter of :data:`LETTERS` of a sampler's grid; empty for any other grid."""
    grid = sampler.grid.to_dict()
    name = {"log_snr": "log-SNR", "spectral": "spectral"}.get(grid["name"], f"Karras ρ={grid.get('rho', 0):g}")
    return LETTERS.get(name, "")


def is_whitened(family: str) -> bool:
    """Whether a family integrates the data's Gaussian exactly in every step, after a teleport or not."""
    return family in ("whitened", "teleport + whitened")


def describe(sampler: Sampler) -> dict[str, Any]:
    """A sampler without its Gaussians, JSON-safe and short: what a table needs, not what a run needs."""
    start = {k: v for k, v in sampler.start.__dict__.items() if isinstance(v, int | float | str)}
    return {
        "solver": {k: v if k != "gains" else "calibrated" for k, v in sampler.rule.to_dict().items()},
        "sigmas": sampler.grid.to_dict(),
        "start": {"name": sampler.start.name, **start},
        "finish": sampler.finish.to_dict(),
        "noise": None if sampler.noise is None else sampler.noise.to_dict(),
        "guidance": [part.name for part in sampler.parts],
        "covariance": sampler.covariance is not None,
        "nfe": planned_nfe(sampler),
    }


def in_words(sampler: Sampler) -> str:
    """A sampler in one line, e.g. ``whitened (order 3) on 8 Karras levels (ρ = 7) after a teleport to σ = 4.1``."""
    solver = sampler.rule.to_dict()
    name, told = NAMES.get(solver["name"], solver["name"]), []
    if solver["name"] == "whitened" and sampler.covariance is None:
        name = "exponential multistep"
    if "variant" in solver:
        told.append(str(solver["variant"]))
    if "points" in solver:
        told.append(f"{solver['points']} points")
    if "order" in solver:
        told.append(f"order {solver['order']}")
    if sampler.rule.adaptive:
        told.append(f"rtol = {solver['rtol']:g}")
    order = f" ({', '.join(told)})" if told else ""
    grid = sampler.grid.to_dict()
    kind = {"karras": "Karras", "log_snr": "log-SNR", "vp_time": "VP-time", "ddpm": "DDPM"}.get(
        grid["name"], grid["name"]
    )
    rho = f" (ρ = {grid['rho']:g})" if "rho" in grid else ""
    levels = [s for s in sampler.levels if s > 0]
    count = len(levels)
    text = f"{name}{order} on {count} {kind} level{'s' if count != 1 else ''}{rho}"
    if sampler.rule.adaptive and len(sampler.rule.stops(levels)) < count:
        text = f"{name}{order} with steps of its own from σ = {levels[0]:.3g} to {levels[-1]:.3g}"
    if not isinstance(sampler.start, Prior) and hasattr(sampler.start, "sigma"):
        text += f" after a {sampler.start.name.replace('_', ' ')} to σ = {sampler.start.sigma:.3g}"
    if sampler.noise is not None:
        text += f" with {sampler.noise.name} noise"
    if sampler.guidance:
        text += f", guided ({', '.join(part.name for part in sampler.parts)})"
    return text
