"""Distances between sets of samples, what their finite number does to them, and a test for copied training data."""

from farfield.metrics.classifier import ClassifierConfig, ImageClassifier, load_classifier
from farfield.metrics.classifier_training import ClassifierTraining, train_classifier
from farfield.metrics.dequantisation import EIGHT_BITS, dequantise
from farfield.metrics.evaluation import Evaluation, EvaluationReference, Figure, evaluate_samples
from farfield.metrics.features import Features, PCAFeatures, pca_features
from farfield.metrics.finite_sample import CorrectedFrechet, corrected_frechet, frechet_floor, frechet_infinity
from farfield.metrics.frechet import FrechetReference, frechet_distance
from farfield.metrics.image_distance import (
    PerceptualDistance,
    PixelDistance,
    pair_statistics,
    paired_comparison,
    pixel_mse,
)
from farfield.metrics.kernel import KernelDistance, kernel_distance
from farfield.metrics.label_statistics import LabelStatistics, class_histogram, label_statistics
from farfield.metrics.likelihood import Likelihood, encode, log_likelihood
from farfield.metrics.memorisation import Memorisation, distinct_rows, memorisation, nearest_distances
from farfield.metrics.neighbourhoods import Neighbourhoods, expected_coverage, neighbourhoods
from farfield.metrics.network_features import (
    ClassifierFeatures,
    InceptionFeatures,
    ModuleFeatures,
    bundled_features,
    default_features,
    load_features,
)
from farfield.metrics.quality import SampleQuality, sample_quality
from farfield.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from farfield.metrics.statistics import FeatureStatistics

__all__ = [
    "EIGHT_BITS",
    "ClassifierConfig",
    "ClassifierFeatures",
    "ClassifierTraining",
    "CorrectedFrechet",
    "Evaluation",
    "EvaluationReference",
    "FeatureStatistics",
    "Features",
    "Figure",
    "FrechetReference",
    "ImageClassifier",
    "InceptionFeatures",
    "KernelDistance",
    "LabelStatistics",
    "Likelihood",
    "Memorisation",
    "ModuleFeatures",
    "Neighbourhoods",
    "PCAFeatures",
    "PerceptualDistance",
    "PixelDistance",
    "SampleQuality",
    "SlicedWasserstein",
    "bundled_features",
    "class_histogram",
    "corrected_frechet",
    "default_features",
    "dequantise",
    "distinct_rows",
    "encode",
    "evaluate_samples",
    "expected_coverage",
    "frechet_distance",
    "frechet_floor",
    "frechet_infinity",
    "kernel_distance",
    "label_statistics",
    "load_classifier",
    "load_features",
    "log_likelihood",
    "memorisation",
    "nearest_distances",
    "neighbourhoods",
    "pair_statistics",
    "paired_comparison",
    "pca_features",
    "pixel_mse",
    "sample_quality",
    "sliced_wasserstein",
    "train_classifier",
]
