"""All figures of a set of samples at once: several seeds, several features, and held-out data beside them.

A distance between samples and training data says little alone: it depends on the features, on the number of samples
and on the data. So each figure is measured for several seeds, whose spread is its error, and once more for held-out
data, which is what a perfect model would score; and each is recorded with all that it depends on.

Which numbers meet. The Fréchet distance is that of all n samples, and the held-out value is read off at n
(:func:`corrected_frechet`). The kernel distance has no bias and takes all there is on both sides. Precision, recall,
density, coverage and the classes depend on numbers in ways that nothing corrects: there the first min(n, M) samples are
set beside as many of the M held-out data, against the same at most 10,000 training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.metrics.features import Features, identify
from farfield.metrics.finite_sample import corrected_frechet
from farfield.metrics.frechet import FrechetReference
from farfield.metrics.kernel import kernel_distance
from farfield.metrics.label_statistics import class_histogram, label_statistics
from farfield.metrics.memorisation import memorisation
from farfield.metrics.neighbourhoods import Balls, Neighbourhoods, measure_neighbourhoods
from farfield.metrics.network_features import ClassifierFeatures
from farfield.numerics import streams

#: Fewer samples than this have no neighbourhoods worth the name; fewer held-out data are left out.
LEAST = 8
#: At most so many training data take part in precision, recall, density and coverage.
NEIGHBOURS = 10_000


@dataclass(frozen=True)
class Figure:
    """One metric on one kind of features.

    Args:
        metric: its name, e.g. ``"frechet"``.
        features: name of the features; ``digest``, of their weights; ``"pixels"`` and None for the values themselves.
        values: one for each seed, in the order of ``seeds``.
        heldout: the same for held-out data at the same number, or None without any.
        n, n_data, n_heldout: samples, training data and held-out data that took part.
        details: what else belongs to the measurement.
    """

    metric: str
    features: str
    digest: str | None
    values: tuple[float, ...]
    heldout: float | None
    n: int
    n_data: int
    n_heldout: int | None
    seeds: tuple[int, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (divided by their number less one); None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ``mean`` and ``std`` as plain values."""
        record = asdict(self) | {"mean": self.mean, "std": self.std, "details": dict(self.details)}
        return record | {"values": list(self.values), "seeds": list(self.seeds)}


@dataclass(frozen=True)
class Evaluation:
    """The figures of samples; see the head of this module.

    Args:
        figures: in the order of the features, then of the metrics.
        features: name, number and digest of each kind of features.
        seeds: of the samples.
        n, n_train, n_heldout: numbers of samples of one seed, training and held-out data.
        seed: of the random subsets.
        about: what the caller knows of samples and data.
    """

    figures: tuple[Figure, ...]
    features: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    n: int
    n_train: int
    n_heldout: int
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def figure(self, metric: str, features: str | None = None) -> Figure:
        """The figure of that name, on features of that name or the first that have it.

        Raises:
            ArgumentError: if there is none.
        """
        for f in self.figures:
            if f.metric == metric and features in (None, f.features):
                return f
        known = ", ".join(sorted({f"{f.metric} on {f.features}" for f in self.figures}))
        raise ArgumentError(f"metric = {metric!r} on features = {features!r} was not measured; there are {known}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "n": self.n,
            "seeds": list(self.seeds),
            "n_train": self.n_train,
            "n_heldout": self.n_heldout,
            "subset_seed": self.seed,
            "features": [dict(f) for f in self.features],
            "figures": [f.to_dict() for f in self.figures],
            **self.about,
        }


class EvaluationReference:
    """Training and held-out data made ready to measure several sets of samples against.

    Args:
        train: (N, *event), N ≥ 8.
        heldout: (M, *event) of the same law that the model has not seen; fewer than 8 count as None.
        features: maps from samples to features.
        seed: of the random subsets.
        copies: whether to look for copied training data, in the space of the values themselves.

    Raises:
        ArgumentError: for too few data, no features, or two of one name.
    """

    def __init__(
        self, train: Tensor, heldout: Tensor | None, features: Sequence[Features], seed: int = 0, copies: bool = True
    ) -> None:
        if len(train) < LEAST:
            raise ArgumentError(f"train has {len(train)} samples; at least {LEAST} are needed")
        names = [f.name for f in features]
        if not names or len(set(names)) < len(names):
            raise ArgumentError(f"features = {names}; expected at least one, each of another name")
        self.train, self.seed, self.copies = train, seed, copies
        self.heldout = heldout if heldout is not None and len(heldout) >= LEAST else None
        self.sides = [_Side(f, train, self.heldout, seed) for f in features]

    def measure(
        self, samples: Sequence[Tensor], seeds: Sequence[int] | None = None, about: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """All figures; arguments as for :func:`evaluate_samples`."""
        sets = list(samples)
        names = tuple(range(len(sets)) if seeds is None else map(int, seeds))
        shapes = {tuple(x.shape) for x in sets}
        if len(shapes) != 1 or len(sets[0]) < LEAST or sets[0].shape[1:] != self.train.shape[1:]:
            raise ArgumentError(
                f"samples have shapes {sorted(shapes)}; expected sets of one number, at least {LEAST}, "
                f"and samples of shape {tuple(self.train.shape[1:])}"
            )
        if len(names) != len(sets) or len(set(names)) != len(names):
            raise ArgumentError(f"seeds = {list(names)}; expected {len(sets)} different ones, one for each set")
        figures = [f for side in self.sides for f in side.measure(sets, names)]
        if self.copies:
            figures += self._copies(sets, names)
        held = 0 if self.heldout is None else len(self.heldout)
        described = tuple(identify(side.features) for side in self.sides)
        n, known = len(sets[0]), dict(about or {})
        return Evaluation(tuple(figures), described, names, n, len(self.train), held, self.seed, known)

    def _copies(self, sets: list[Tensor], seeds: tuple[int, ...]) -> list[Figure]:
        """Nearest training data; the seeds go through the search together, so the held-out data go once."""
        n = len(sets[0])
        whole = memorisation(torch.cat(sets), self.train, self.heldout)
        parts = [
            replace(whole, distance=whole.distance[s], ratio=whole.ratio[s], nearest=whole.nearest[s])
            for s in (slice(k * n, (k + 1) * n) for k in range(len(sets)))
        ]
        held = None if self.heldout is None else len(self.heldout)
        common = (n, whole.n_train, held, seeds)
        out = [Figure("copies", "pixels", None, tuple(p.copies for p in parts), whole.heldout_copies, *common)]
        if held is not None:
            closer = tuple(v for p in parts if (v := p.closer) is not None)
            median = tuple(v for p in parts if (v := p.median_ratio) is not None)
            out.append(Figure("closer", "pixels", None, closer, 0.5, *common))
            if len(median) == len(parts):
                out.append(Figure("median_ratio", "pixels", None, median, 1.0, *common))
        return out


class _Side:
    """The data in one kind of features, with what each metric needs of them."""

    def __init__(self, features: Features, train: Tensor, heldout: Tensor | None, seed: int) -> None:
        self.features, self.seed = features, seed
        self.train = features(train)
        self.heldout = None if heldout is None else features(heldout)
        self.frechet = FrechetReference.of(self.train)
        order = streams.permutation(seed, len(train), purpose="evaluation")[:NEIGHBOURS].sort().values
        self.balls = Balls.of(self.train[order.to(self.train.device)], (3, 5))
        self._held: dict[tuple[str, int], Any] = {}  # of the held-out data, by metric and number

    def measure(self, samples: list[Tensor], seeds: tuple[int, ...]) -> list[Figure]:
        """The figures on these features."""
        drawn = [self.features(x) for x in samples]
        out = [self._frechet(drawn, seeds), self._kernel(drawn, seeds), *self._neighbourhoods(drawn, seeds)]
        return out + (self._labels(drawn, seeds) if isinstance(self.features, ClassifierFeatures) else [])

    def _make(
        self,
        metric: str,
        values: Sequence[float],
        heldout: float | None,
        n: tuple[int, int, int | None],
        seeds: tuple[int, ...],
        details: Mapping[str, Any],
    ) -> Figure:
        f = self.features
        return Figure(metric, f.name, f.digest, tuple(values), heldout, *n, seeds, details)

    def _matched(self, n: int) -> int:
        return n if self.heldout is None else min(n, len(self.heldout))

    def _frechet(self, drawn: list[Tensor], seeds: tuple[int, ...]) -> Figure:
        n, held, values = len(drawn[0]), None, [self.frechet.distance(x) for x in drawn]
        if self.heldout is not None:
            key = ("frechet", n)
            if key not in self._held:
                self._held[key] = corrected_frechet(self.heldout, self.train, n, seed=self.seed)
            held = self._held[key]
        sizes = (n, len(self.train), None if self.heldout is None else len(self.heldout))
        details = {} if held is None else {"heldout": held.to_dict()}
        return self._make("frechet", values, None if held is None else held.value, sizes, seeds, details)

    def _kernel(self, drawn: list[Tensor], seeds: tuple[int, ...]) -> Figure:
        measured, held = [kernel_distance(x, self.train, self.seed) for x in drawn], None
        if self.heldout is not None:
            key = ("kernel", 0)
            if key not in self._held:
                self._held[key] = kernel_distance(self.heldout, self.train, self.seed)
            held = self._held[key]
        details = {
            "standard_error": [m.standard_error for m in measured],
            "heldout_standard_error": None if held is None else held.standard_error,
            "block": measured[0].block,
            "blocks": measured[0].blocks,
        }
        sizes = (len(drawn[0]), len(self.train), None if held is None else held.n_a)
        values = [m.value for m in measured]
        return self._make("kernel", values, None if held is None else held.value, sizes, seeds, details)

    def _neighbourhoods(self, drawn: list[Tensor], seeds: tuple[int, ...]) -> list[Figure]:
        m = self._matched(len(drawn[0]))
        measured = [measure_neighbourhoods(x[:m], self.balls) for x in drawn]
        held: Neighbourhoods | None = None
        if self.heldout is not None:
            key = ("neighbourhoods", m)
            if key not in self._held:
                self._held[key] = measure_neighbourhoods(self.heldout[:m], self.balls)
            held = self._held[key]
        sizes = (m, measured[0].n_data, None if held is None else m)
        out = []
        for metric, k in (("precision", 3), ("recall", 3), ("density", 5), ("coverage", 5)):
            base = None if held is None else float(getattr(held, metric))
            values = [float(getattr(v, metric)) for v in measured]
            out.append(self._make(metric, values, base, sizes, seeds, {"k": k}))
        return out

    def _labels(self, drawn: list[Tensor], seeds: tuple[int, ...]) -> list[Figure]:
        assert isinstance(self.features, ClassifierFeatures)
        f, m = self.features, self._matched(len(drawn[0]))
        base = class_histogram(f.probabilities(self.train).argmax(1), f.classes)
        measured = [label_statistics(f.probabilities(x[:m]), base) for x in drawn]
        held = None if self.heldout is None else label_statistics(f.probabilities(self.heldout[:m]), base)
        sizes = (m, len(self.train), None if held is None else m)
        histograms = {
            "histogram": [list(v.histogram) for v in measured],
            "heldout_histogram": None if held is None else list(held.histogram),
            "data_histogram": base.tolist(),
        }
        out = []
        for metric in ("entropy", "balance", "confidence", "score"):
            values = [float(getattr(v, metric)) for v in measured]
            reference = None if held is None else float(getattr(held, metric))
            if not all(torch.isfinite(torch.tensor([*values, reference or 0.0]))):
                continue  # a class that the data lack: the divergence has no value; the histograms show it
            details = histograms if metric == "entropy" else {}
            out.append(self._make(f"class_{metric}", values, reference, sizes, seeds, details))
        return out


def evaluate_samples(
    samples: Tensor | Sequence[Tensor],
    train: Tensor,
    heldout: Tensor | None,
    features: Sequence[Features],
    *,
    seeds: Sequence[int] | None = None,
    seed: int = 0,
    copies: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Every metric on every kind of features; see the head of this module.

    Args:
        samples: (n, *event), or one such set for each seed, all of one number n ≥ 8.
        train: (N, *event), what the model was trained on.
        heldout: (M, *event) of the same law that it has not seen, or None.
        features: maps from samples to features, e.g. :func:`default_features` and :func:`pca_features`.
        seeds: of the sets; 0, 1, … by default.
        seed: of the random subsets.
        copies: whether to look for copied training data.
        about: anything JSON can hold about samples and data, kept in the record.

    Raises:
        ArgumentError: for shapes or numbers that do not fit.
    """
    sets = [samples] if isinstance(samples, Tensor) else list(samples)
    if not sets:
        raise ArgumentError("samples is empty; expected at least one set")
    return EvaluationReference(train, heldout, features, seed, copies).measure(sets, seeds, about)
