"""What a run measures on samples of its averaged model: one number on the way, everything for the card at the end."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from farfield.data import DataSet
from farfield.metrics import FrechetReference, sample_quality
from farfield.metrics.evaluation import LEAST
from farfield.metrics.features import Features
from farfield.metrics.network_features import default_features
from farfield.networks.preconditioning import Preconditioned
from farfield.numerics import streams
from farfield.training.config import EvaluateConfig
from farfield.training.evaluate import draw_sets, evaluate_model, reference_sampler
from farfield.training.labels import labels_like

#: Samples drawn at once; it does not change them.
BATCH = 256
#: Training data behind the distance that is watched.
REFERENCE = 10_000


def _draw(model: Preconditioned, data: DataSet, config: EvaluateConfig, conditional: bool) -> Tensor:
    labels: dict[str, Any] = {}
    if conditional and data.labels is not None:
        labels = {"labels": labels_like(data.labels, config.samples, config.seed)}
    return reference_sampler(model, config.steps)(
        model.eval(), config.samples, config.seed, batch_size=BATCH, **labels
    ).x


class Watch:
    """The Fréchet distance of a run's samples on the way, on the data's default features.

    It depends on the number of samples and is comparable along a run, not between runs with other numbers.

    Args:
        data: the training data, of which at most 10,000 serve as reference.
        config: how many samples, and their seed.
        conditional: whether the model is trained with classes.
    """

    def __init__(self, data: DataSet, config: EvaluateConfig, conditional: bool) -> None:
        self.data, self.config, self.conditional = data, config, conditional
        self._reference: tuple[Features, FrechetReference] | None = None

    def __call__(self, model: Preconditioned) -> dict[str, float]:
        """The distance of the averaged model's samples, by name."""
        x = _draw(model, self.data, self.config, self.conditional)
        if self._reference is None:  # once a run: the features of the data take longer than the samples
            features = default_features(self.data, x.device)
            rows = streams.permutation(0, len(self.data), purpose="watch")[:REFERENCE].sort().values
            self._reference = features, FrechetReference.of(features(self.data.images[rows].to(x.device)))
        features, reference = self._reference
        return {"frechet": reference.distance(features(x))}


def at_the_end(
    model: Preconditioned, data: DataSet, held: DataSet | None, config: EvaluateConfig, conditional: bool
) -> dict[str, Any]:
    """The finished model's figures for its card, each with features, numbers and seeds; nothing where none are asked for.

    Args:
        model: the averaged model.
        data, held: training and held-out data.
        config: how many samples, of which seeds.
        conditional: whether the model was trained with classes.
    """
    if not (config.samples and config.at_end):
        return {}
    seeds = tuple(range(config.seed, config.seed + config.seeds))
    plain = data if conditional else dataclasses.replace(data, labels=None)
    sampler = reference_sampler(model, config.steps)
    sets = draw_sets(model.eval(), plain, sampler, config.samples, seeds, BATCH)
    quality = sample_quality(sets[0], data.images, None if held is None else held.images, seed=config.seed)
    found: dict[str, Any] = {
        "quality": {"sampler": f"heun, {sampler.nfe} evaluations", "seed": config.seed, **quality.to_dict()}
    }
    if config.samples >= LEAST and len(data) >= LEAST:
        found["evaluation"] = evaluate_model(
            model, plain, held, n=config.samples, seeds=seeds, sampler=sampler, drawn=sets
        )
    return found
