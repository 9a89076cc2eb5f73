"""Distances between sets of samples, what their finite number does to them, and a test for copied training data."""

from farfield.metrics.features import PCAFeatures, pca_features
from farfield.metrics.finite_sample import CorrectedFrechet, corrected_frechet, frechet_floor, frechet_infinity
from farfield.metrics.frechet import FrechetReference, frechet_distance
from farfield.metrics.memorisation import Memorisation, distinct_rows, memorisation, nearest_distances
from farfield.metrics.quality import SampleQuality, sample_quality
from farfield.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from farfield.metrics.statistics import FeatureStatistics

__all__ = [
    "CorrectedFrechet",
    "FeatureStatistics",
    "FrechetReference",
    "Memorisation",
    "PCAFeatures",
    "SampleQuality",
    "SlicedWasserstein",
    "corrected_frechet",
    "distinct_rows",
    "frechet_distance",
    "frechet_floor",
    "frechet_infinity",
    "memorisation",
    "nearest_distances",
    "pca_features",
    "sample_quality",
    "sliced_wasserstein",
]
