"""Does the optimal denoiser replay its data, and why does a network not?"""

from __future__ import annotations

import math
from typing import Any

from farfield.analysis.diagnosis_result import ALMOST_ALL
from farfield.analysis.diagnosis_starts import StartKind
from farfield.analysis.replay import ReplayAudit, replay_audit
from farfield.analysis.tables import Table
from farfield.data import load
from farfield.distributions.jittered import Jittered
from farfield.experiments.base import Outcome, Settings, Verdict, experiment, figure_name
from farfield.experiments.score_deviation import LEVELS, STARTS, bundled
from farfield.sampling import Sampler, karras

#: How the paths start: pure noise, and noised data.
KINDS: tuple[StartKind, ...] = ("gaussian", "noised")
#: Jitter of the exact stand-ins, points of their data, starts and levels.
JITTER = (0.01, 0.1, 0.3, 1.0)
POINTS, JITTER_STARTS, JITTER_LEVELS = 500, 32, 40

COLUMNS = (
    "model", "starts", "n", "optimum: data points", "different ones", "model: data points", "copies", "held-out: copies",
    "median distance", "over held-out", "same basin", "fell into it", "leading halfway", "locked halfway",
    "90 % locked below σ",
)  # fmt: skip


def stand_ins(seed: int) -> tuple[Table, bool]:
    """Jittered digits: samples δ√d from the data, copies while δ is small; and whether it is so."""
    data = load("digits").train.images[:POINTS].double()
    rows: list[tuple[Any, ...]] = []
    right, run = [], Sampler("heun", karras(JITTER_LEVELS))
    for delta in JITTER:
        model = Jittered(data, delta)
        found = replay_audit(model, data, n=JITTER_STARTS, seed=seed, sampler=run, dtype=data.dtype)
        near, expected = float(found.model.distance.median()), delta * math.sqrt(model.dim)
        rows.append((delta, near, expected, found.model.copies, found.model_replayed, found.replayed, found.basin_rate))
        # The formula is for a jitter that leaves the nearest point the nearest.
        fits = delta > 0.5 or abs(near / expected - 1) < 0.15
        right.append(found.replayed == 1 and found.model_replayed == 0 and fits)
    columns = ("jitter δ", "median distance", "δ√d", "copies", "data points", "optimum: data points", "same basin")
    return Table(
        f"exact stand-ins: {POINTS} jittered digits, Heun on {JITTER_LEVELS} levels", columns, tuple(rows)
    ), all(right)


def _row(name: str, found: ReplayAudit) -> tuple[Any, ...]:
    return (
        name, found.starts, found.n, found.replayed, found.distinct, found.model_replayed, found.model.copies,
        found.model.heldout_copies, float(found.model.distance.median()), found.model.median_ratio, found.basin_rate,
        found.captured, found.leading_halfway, found.locked_halfway, found.lock_level,
    )  # fmt: skip


@experiment(
    "replay",
    claim="With the optimal denoiser every sample is a training point; a network's samples do not fall into the basin of one, "
    "though the optimal denoiser's output on their path is the nearest data point from half of the steps on",
    source="Chen et al., A geometric perspective on diffusion models, section 6 and figures 15 and 19",
    cost="about two minutes on one core",
)
def replay(settings: Settings) -> Outcome:
    """Exact stand-ins first, then the bundled networks beside the optimum of their training sets."""
    theory, right = stand_ins(settings.seed)
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {}
    replays, novel, decided, words, used = list[bool](), list[bool](), list[bool](), list[str](), list[str]()
    for name, model, data in bundled(settings):
        used.append(name)
        for kind in KINDS:
            found = replay_audit(
                model,
                data.train.images,
                heldout=data.validation.images,
                n=STARTS[name],
                seed=settings.seed,
                starts=kind,
            )
            rows.append(_row(name, found))
            replays.append(found.replayed == 1)
            novel.append(found.model_replayed == 0 and found.captured == 0)
            decided.append(found.leading_halfway >= ALMOST_ALL)
            if kind == KINDS[0]:
                figures[figure_name("replay", name)] = found.plot()
                lock = "never" if found.lock_level is None else f"from σ = {found.lock_level:.2g} on"
                words.append(
                    f"{name}: {found.replayed:.0%} of the optimum's samples are training images ({found.distinct} different "
                    f"ones of {found.n}), of the network's {found.model_replayed:.0%}, with {found.model.copies:.0%} copies; "
                    f"{found.basin_rate:.0%} are nearest to the optimum's image, {found.captured:.0%} fell into it; after half "
                    f"of the steps the optimum's output is nearest to the image next to the sample for "
                    f"{found.leading_halfway:.0%}, and it is that image for 90 % {lock}"
                )
    every, any_new = all(replays) and right, all(novel)
    verdict: Verdict = (
        "holds" if every and any_new and all(decided) else "holds in part" if every or any_new else "does not hold"
    )
    tables = (theory, Table(f"bundled networks, Heun on {LEVELS} levels", COLUMNS, tuple(rows)))
    return Outcome(verdict, "; ".join(words), tables, figures, {"seed": settings.seed, "levels": LEVELS, "data": used})
