"""Classes for the samples of a conditional model, as a card and a report draw them."""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.numerics import streams


def labels_like(labels: Tensor, n: int, seed: int) -> Tensor:
    """Classes for samples 0 … n − 1 of a seed, in the proportion of the data.

    Sample i has the class of row ``order[i mod N]`` in a random order of the data that depends on ``seed`` alone, so the
    class of a sample does not depend on how many are drawn.

    Args:
        labels: (N,) the classes of the data.
        n: how many.
        seed: of the samples.

    Returns:
        (n,) classes, on the device of ``labels``.
    """
    order = streams.permutation(seed, len(labels), purpose="evaluate")
    return labels[order[torch.arange(n) % len(order)].to(labels.device)]
