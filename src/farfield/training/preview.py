"""Pictures of what a run's averaged model draws, the same noise at every look, so that the pictures can be compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.analysis.images import grid_png, is_image
from farfield.networks.files import write_atomic
from farfield.networks.preconditioning import Preconditioned
from farfield.training.evaluate import reference_sampler
from farfield.training.labels import labels_like

if TYPE_CHECKING:
    from farfield.training.config import PreviewConfig


@torch.no_grad()
def write_preview(path: Path, model: Preconditioned, config: PreviewConfig, labels: Tensor | None) -> None:
    """Draw ``config.samples`` samples with Heun's method and write them as one PNG; nothing for vectors.

    Args:
        path: where; written atomically.
        model: the averaged model.
        config: how many samples, levels, and the seed.
        labels: classes of the data, from which those of the samples are drawn, or None.
    """
    if not is_image(model.event_shape):
        return
    condition: dict[str, Any] = {} if labels is None else {"labels": labels_like(labels, config.samples, config.seed)}
    x = reference_sampler(model, config.steps)(model, config.samples, config.seed, batch_size=64, **condition).x
    png, _ = grid_png(x, math.ceil(math.sqrt(config.samples)), tile=48)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda partial: partial.write_bytes(png))
