"""The evaluation of a model, as a training run calls it and a card keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from farfield.data import DataSet
from farfield.denoiser import Denoiser
from farfield.metrics.evaluation import evaluate_samples
from farfield.metrics.features import Features, pca_features
from farfield.metrics.network_features import PCA_COMPONENTS, default_features
from farfield.sampling import Sampler, karras
from farfield.training.labels import labels_like


def evaluation_features(data: DataSet, device: Any = "cpu") -> list[Features]:
    """The features a model of these data is measured on: the default ones, and principal components beside them."""
    first = default_features(data, device)
    pca = pca_features(data.images, min(PCA_COMPONENTS, data.images[0].numel()))
    return [first] if first.name == pca.name else [first, pca]


def reference_sampler(model: Denoiser, steps: int) -> Sampler:
    """Heun's method on EDM's grid, within σ = 0.002 to 80: ranges of other preconditionings reach further for nothing."""
    return Sampler("heun", karras(steps, max(model.sigma_min, 0.002), min(model.sigma_max, 80.0)))


def draw_sets(
    model: Denoiser, train: DataSet, sampler: Sampler, n: int, seeds: Sequence[int], batch_size: int = 256
) -> list[Tensor]:
    """Samples of several seeds, on the device of the data, images clipped to [−1, 1]; arguments as for evaluate_model."""
    device = next((p.device for p in model.parameters()), train.images.device)
    sets = []
    for seed in seeds:
        labels: dict[str, Any] = {}
        if getattr(model, "label_dim", 0) and train.labels is not None:
            labels = {"labels": labels_like(train.labels, n, seed).to(device)}
        x = sampler(model, n, seed, batch_size=batch_size, **labels).x.to(train.images.device)
        sets.append(x.clamp(-1, 1) if len(train.event_shape) == 3 else x)
    return sets


def evaluate_model(
    model: Denoiser,
    train: DataSet,
    heldout: DataSet | None = None,
    *,
    n: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 18,
    sampler: Sampler | None = None,
    features: Sequence[Features] | None = None,
    batch_size: int = 256,
    drawn: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """Draw samples of several seeds and measure them: a record for the log of a run or the card of its model.

    Args:
        model: a denoiser in eval mode; one with classes is asked for those of the data, in their proportion.
        train: what it was trained on.
        heldout: data it has not seen, or None.
        n: samples of each seed, ≥ 8.
        seeds: of the samples.
        steps: noise levels of Heun's method on EDM's grid, where no ``sampler`` is given.
        sampler: how to draw.
        features: what to measure on; :func:`evaluation_features` by default.
        batch_size: samples drawn at once; it does not change them.
        drawn: the samples of the seeds, where :func:`draw_sets` has made them already.

    Returns:
        ``Evaluation.to_dict()``, with the sampler and the data.
    """
    plan = sampler if sampler is not None else reference_sampler(model, steps)
    device = next((p.device for p in model.parameters()), train.images.device)
    sets = draw_sets(model, train, plan, n, seeds, batch_size) if drawn is None else drawn
    about = {
        "sampler": {k: v for k, v in json.loads(plan.to_json()).items() if k != "gaussians"},
        "data": {"name": train.name, "count": len(train), "digest": train.digest},
    }
    maps = evaluation_features(train, device) if features is None else features
    held = None if heldout is None else heldout.images
    return evaluate_samples(sets, train.images, held, maps, seeds=seeds, about=about).to_dict()
