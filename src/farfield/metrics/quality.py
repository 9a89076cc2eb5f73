"""The figures that say whether samples are good and not copied: one call for a model's card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from farfield.metrics.features import pca_features
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
    features = pca_features(train, min(components, train[0].numel()))
    of_train = features(train)
    held = None
    if heldout is not None and len(heldout) >= 4:
        held = corrected_frechet(features(heldout), of_train, len(samples), seed=seed)
    return SampleQuality(
        frechet_distance(features(samples), of_train),
        held,
        features.components,
        features.explained,
        memorisation(samples, train, heldout),
        len(samples),
        len(train),
    )
