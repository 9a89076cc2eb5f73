"""Learning dynamics, read: which law a network passes on its way and when, and in which order it learns directions.

Far from its start a network is nearest to a simple law and then leaves it for a finer one: at σ of the data's own scale
the unexplained fraction by the Gaussian dips and rises again, that by a few clusters later, that by the training samples
falls to the end; at σ far above it all fall together (Wang & Vastola 2024, section 5).

For the directions there is a theory: a linear denoiser under gradient flow learns component k at the rate
``2η (λ_k + σ²)`` (:mod:`farfield.analysis.linear_learning`), so large variances first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from farfield.analysis.learning_plot import draw
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError

#: A curve that ends this many times above its least value has turned.
OVERSHOOT = 1.05
#: The part of its way, 1 − 1/e, after which a direction counts as learned.
LEARNED = 1 - math.exp(-1)
#: Directions whose gain moves less than this part of the largest way have no order: their gains are noise.
_LEAST_WAY = 0.1

Kind = Literal["monotone", "dip and rise", "not yet"]
Quantity = Literal["score", "denoiser"]


@dataclass(frozen=True)
class Course:
    """How one curve ran.

    Attributes:
        first, least, last: values at the first look, at the lowest, and at the last.
        step: of the lowest.
    """

    first: float
    least: float
    step: int
    last: float

    @property
    def overshoot(self) -> float:
        """The last value over the least, ≥ 1."""
        return self.last / self.least if self.least > 0 else (math.inf if self.last > 0 else 1.0)

    @property
    def kind(self) -> Kind:
        """``monotone``: falls to the end; ``dip and rise`` by over 5 %; ``not yet``: not once 5 % below its start."""
        if not self.least < self.first / OVERSHOOT:
            return "not yet"
        return "dip and rise" if self.overshoot > OVERSHOOT else "monotone"


@dataclass(frozen=True)
class LawLearning:
    """Unexplained fractions by one law, of score and denoiser: a curve over the looks for each noise level."""

    score: tuple[tuple[float, ...], ...]
    denoiser: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class LearningCurves:
    """The course of a training run as a :class:`~farfield.analysis.learning.LearningProbe` saw it.

    Attributes:
        steps: of the looks, ascending.
        images: seen by then, or None where the rows do not tell.
        sigmas: noise levels, decreasing.
        laws: a curve for each level, by law, coarse to fine as they were given.
        variances: λ of the components.
        gains: a curve for each level and component: slope of the denoiser's coordinate on the noisy one.
        queries, seed: of the probe.
        weights: ``average``, ``raw``, ``snapshots``, ``checkpoints``: what was looked at; empty where not told.
    """

    steps: tuple[int, ...]
    images: tuple[int, ...] | None
    sigmas: tuple[float, ...]
    laws: dict[str, LawLearning]
    variances: tuple[float, ...]
    gains: tuple[tuple[tuple[float, ...], ...], ...]
    queries: int
    seed: int
    weights: str

    def _level(self, sigma: float) -> int:
        for k, level in enumerate(self.sigmas):
            if math.isclose(level, sigma, rel_tol=1e-9):
                return k
        raise ArgumentError(f"sigma = {sigma}; this record has {', '.join(f'{s:g}' for s in self.sigmas)}")

    def course(self, law: str, sigma: float, of: Quantity = "score") -> Course:
        """How the curve of a law ran at a level.

        Raises:
            ArgumentError: for a law or level that the record does not have.
        """
        if law not in self.laws:
            raise ArgumentError(f"law = {law!r}; this record has {', '.join(self.laws)}")
        curve = getattr(self.laws[law], of)[self._level(sigma)]
        low = min(range(len(curve)), key=curve.__getitem__)
        return Course(curve[0], curve[low], self.steps[low], curve[-1])

    @property
    def selective(self) -> tuple[float, ...]:
        """The levels σ ≤ √λ₁, at which linear theory tells components apart; far above, all are learned at one rate."""
        return tuple(s for s in self.sigmas if self.variances and s * s <= self.variances[0])

    def order(self, sigma: float) -> tuple[str, ...]:
        """The laws in the order in which the network leaves them: by the step at which it is nearest to each."""
        return tuple(sorted(self.laws, key=lambda law: self.course(law, sigma).step))

    def passed(self, sigma: float) -> tuple[str, ...]:
        """The laws, in order, that the network comes near to and leaves for another one.

        Their curves dip and rise while another law's falls to the end. Where all curves turn, the network is not on its way
        to any of them: that is the noise of weights in training, or a run that goes wrong.
        """
        kinds = {law: self.course(law, sigma).kind for law in self.laws}
        if "monotone" not in kinds.values():
            return ()
        return tuple(law for law in self.order(sigma) if kinds[law] == "dip and rise")

    def learning_steps(self, sigma: float) -> tuple[float | None, ...]:
        """The step at which each component has gone 63 % (1 − 1/e) of its gain's way from first to last look.

        Steps are interpolated linearly between looks, to six digits. A component whose way is under a tenth of the largest
        has None.
        """
        curves = self.gains[self._level(sigma)]
        largest = max((abs(c[-1] - c[0]) for c in curves), default=0.0)
        return tuple(_arrival(self.steps, c) if abs(c[-1] - c[0]) > _LEAST_WAY * largest else None for c in curves)

    def rank_correlation(self, sigma: float) -> float | None:
        """Spearman's rank correlation of learning step and variance: −1 where large variances are learned first.

        None where fewer than three components have a learning step, or all have the same.
        """
        from scipy.stats import spearmanr

        found = [(v, t) for v, t in zip(self.variances, self.learning_steps(sigma), strict=True) if t is not None]
        if len(found) < 3 or len({v for v, _ in found}) < 2 or len({t for _, t in found}) < 2:
            return None
        return float(spearmanr(*zip(*found, strict=True)).statistic)

    def summary(self) -> str:
        """Which laws the network passed, where all fall together, and the order of the components."""
        words = []
        passed = {s: self.passed(s) for s in self.sigmas}

        def rank(s: float) -> tuple[int, float]:
            return len(passed[s]), max((self.course(w, s).overshoot for w in passed[s]), default=0.0)

        most = max(self.sigmas, key=rank)
        if passed[most]:
            places = [f"{_name(law)} at step {self.course(law, most).step:,}" for law in passed[most]]
            first = self.course(passed[most][0], most)
            words.append(
                f"At σ = {most:g} the network is nearest to {_listed(places)}, and moves on: the fraction of its score that "
                f"{_name(passed[most][0])} leaves unexplained rises from {first.least:.2g} to {first.last:.2g}."
            )
        else:
            words.append("At no level does the network come near to a law and leave it for another.")
        together = [s for s in self.sigmas if all(self.course(law, s).kind == "monotone" for law in self.laws)]
        if together:
            words.append(f"At σ = {', '.join(f'{s:g}' for s in together)} all curves fall to the end.")
        ranks = {s: r for s in self.selective if (r := self.rank_correlation(s)) is not None}
        if ranks:
            s = most if most in ranks else max(ranks)
            words.append(
                f"Rank correlation of a component's learning step with its variance: {ranks[s]:.2f} at σ = {s:g} "
                "(−1: large variances first, as in linear theory)."
            )
        return " ".join(words)

    def tables(self) -> list[Table]:
        """The course of each curve of score and denoiser, and the learning steps of the components."""
        found = []
        for of in ("score", "denoiser"):
            rows: list[tuple[float | int | str | None, ...]] = []
            for s in self.sigmas:
                for law in self.laws:
                    c = self.course(law, s, of)  # type: ignore[arg-type]
                    ratio = c.overshoot if math.isfinite(c.overshoot) else None
                    rows.append((s, law, c.first, c.least, c.step, c.last, ratio, c.kind))
            columns = ("σ", "law", "start", "least", "at step", "end", "end ÷ least", "course")
            title = f"unexplained fraction of the {of}, steps {self.steps[0]:,} to {self.steps[-1]:,}"
            found.append(Table(title, columns, tuple(rows)))
        if self.variances:
            steps = [self.learning_steps(s) for s in self.sigmas]
            directions = [(k + 1, v, *(t[k] for t in steps)) for k, v in enumerate(self.variances)]
            directions.append(("rank correlation", None, *map(self.rank_correlation, self.sigmas)))  # type: ignore[arg-type]
            heads = ("component", "variance λ", *(f"step at σ = {s:g}" for s in self.sigmas))
            found.append(Table("when 63 % of a component's gain is learned", heads, tuple(directions)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with the courses, laws passed, orders, learning steps and rank correlations."""

        def courses(of: Quantity) -> dict[str, list[dict[str, Any]]]:
            found = {law: [self.course(law, s, of) for s in self.sigmas] for law in self.laws}
            return {law: [{**asdict(c), "course": c.kind} for c in row] for law, row in found.items()}

        return {
            **asdict(self),
            "courses": {"score": courses("score"), "denoiser": courses("denoiser")},
            "passed": [list(self.passed(s)) for s in self.sigmas],
            "order": [list(self.order(s)) for s in self.sigmas],
            "learning_steps": [list(self.learning_steps(s)) for s in self.sigmas],
            "rank_correlation": [self.rank_correlation(s) for s in self.sigmas],
        }

    def plot(self, ax: Any = None) -> Any:
        """Score curves by law at up to four levels, and learning steps against variance. Returns the figure."""
        return draw(self, ax)


def _name(law: str) -> str:
    kind, _, count = law.partition(":")
    return "the Gaussian" if kind == "gaussian" else f"the {kind} law" + (f" of {count} parts" if count else "")


def _listed(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{', to '.join(places[:-1])} and to {places[-1]}"


def _arrival(steps: Sequence[int], curve: Sequence[float]) -> float:
    """Where a curve first has gone 63 % of its way, interpolated between looks."""
    way = curve[-1] - curve[0]
    goal = curve[0] + LEARNED * way
    k = next(k for k, v in enumerate(curve) if (v - goal) * way >= 0)
    if k == 0:
        return float(steps[0])
    share = (goal - curve[k - 1]) / (curve[k] - curve[k - 1])
    return float(f"{steps[k - 1] + share * (steps[k] - steps[k - 1]):.6g}")
