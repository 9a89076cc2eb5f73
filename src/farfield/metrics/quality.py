"""The figures that say whether samples are good and not copied: one call for a model's card."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from farfield.metrics.features import PCAFeatures, pca_features
from farfield.metrics.finite_sample import CorrectedFrechet, corrected_frechet
from farfield.metrics.frechet import frechet_distance
from farfield.metrics.memorisation import Memorisation, memorisation


@dataclass(frozen=True)
class SampleQuality:
    """Samples beside held-out data, both against the training data.

    Attributes:
        frechet: squared Fréchet distance of the samples to the training data, on principal components.
        frechet_heldout: the same for the held-out data, corrected to the samples' number; None without any.
        components, explained: the features, and the fraction of the variance that they keep.
        copying: nearest-neighbour distances and their ratios.
        n, n_train: numbers of samples.
    """

    frechet: float
    frechet_heldout: CorrectedFrechet | None
    components: int
    explained: float
    copying: Memorisation
    n: int
    n_train: int

    @property
    def ratio(self) -> float | None:
        """``frechet`` over the corrected held-out value: 1 for a perfect model."""
        held = self.frechet_heldout
        return self.frechet / held.value if held is not None and held.value > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "frechet": self.frechet,
            "frechet_heldout": None if self.frechet_heldout is None else self.frechet_heldout.to_dict(),
            "frechet_ratio": self.ratio,
            "features": f"pixels on {self.components} principal components of the training data",
            "explained": self.explained,
            "n": self.n,
            "n_train": self.n_train,
            "memorisation": self.copying.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class QualityReference:
    """Training and held-out data made ready to measure several sets of samples against; :meth:`of` makes one.

    Attributes:
        train, heldout: the data, (N, *event) and (M, *event) or None.
        features: principal components of ``train``.
        seed: of the subsets in the correction of the held-out value.
    """

    train: Tensor
    heldout: Tensor | None
    features: PCAFeatures
    seed: int
    _train_features: Tensor = field(repr=False)
    _corrected: dict[int, CorrectedFrechet] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, train: Tensor, heldout: Tensor | None = None, components: int = 40, seed: int = 0) -> QualityReference:
        """Fit the features; arguments as for :func:`sample_quality`, an empty ``heldout`` counts as None."""
        features = pca_features(train, min(components, math.prod(train.shape[1:])))
        held = heldout if heldout is not None and len(heldout) else None
        return cls(train, held, features, seed, features(train))

    def frechet(self, samples: Tensor) -> float:
        """Squared Fréchet distance of samples (n, *event) to the training data."""
        return frechet_distance(self.features(samples), self._train_features)

    def frechet_heldout(self, n: int) -> CorrectedFrechet | None:
        """The same of the held-out data, corrected to ``n`` samples; None for fewer than 4. Computed once for each n."""
        if self.heldout is None or len(self.heldout) < 4:
            return None
        if n not in self._corrected:
            self._corrected[n] = corrected_frechet(
                self.features(self.heldout), self._train_features, n, seed=self.seed
            )  # fmt: skip
        return self._corrected[n]

    def measure(self, samples: Tensor) -> SampleQuality:
        """All figures for one set of samples (n, *event)."""
        return SampleQuality(
            self.frechet(samples),
            self.frechet_heldout(len(samples)),
            self.features.components,
            self.features.explained,
            memorisation(samples, self.train, self.heldout),
            len(samples),
            len(self.train),
        )


def sample_quality(
    samples: Tensor, train: Tensor, heldout: Tensor | None = None, components: int = 40, seed: int = 0
) -> SampleQuality:
    """Fréchet distance on principal components and nearest-neighbour ratio.

    The held-out data are fewer than the samples, and the Fréchet distance falls with the number of samples; the held-out
    value is therefore extrapolated to the samples' number (:func:`corrected_frechet`).

    Args:
        samples: (n, *event).
        train: (N, *event); the features are fitted to it.
        heldout: (M, *event), data of the same law that the model has not seen.
        components: principal components, at most d.
        seed: of the subsets in the correction.
    """
    return QualityReference.of(train, heldout, components, seed).measure(samples)
