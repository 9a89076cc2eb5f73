"""Mixtures from data: clusters or classes, each with its own mean, covariance and frequency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.stacking import floored
from farfield.errors import ArgumentError, DataError
from farfield.numerics import moments
from farfield.numerics.spectrum import Spectrum, Tail

#: Weights, means and spectra: what ``GaussianMixture`` is made of.
Parts = tuple[list[float], Tensor, list[Spectrum]]


def fit(data: Tensor | np.ndarray, components: int, rank: int | None, seed: int, tail: Tail, floor: float) -> Parts:
    """The parts of ``GaussianMixture.fit``."""
    if not 1 <= components <= data.shape[0]:
        raise ArgumentError(f"components = {components}; expected 1 to the number of points, {data.shape[0]}")
    flat = data.reshape(data.shape[0], -1)
    points = np.asarray(flat.detach().cpu() if isinstance(flat, Tensor) else flat)
    if not np.isfinite(points.sum()):
        raise DataError("the data hold values that are not finite")
    if components == 1:
        labels = np.zeros(points.shape[0], dtype=np.int64)
    else:
        from sklearn.cluster import MiniBatchKMeans

        kmeans = MiniBatchKMeans(n_clusters=components, batch_size=2048, random_state=seed, n_init=3)
        labels = kmeans.fit_predict(points)
    return per_class(data, torch.from_numpy(np.asarray(labels)), rank, tail, floor)


def per_class(
    data: Tensor | np.ndarray, labels: Tensor | Sequence[int], rank: int | None, tail: Tail, floor: float
) -> Parts:
    """The parts of ``GaussianMixture.per_class``."""
    ids = torch.as_tensor(labels).cpu()
    if ids.shape != (data.shape[0],):
        raise ArgumentError(f"labels has shape {tuple(ids.shape)}; expected ({data.shape[0]},)")
    weights, means, spectra = [], [], []
    for label in torch.unique(ids):
        members = torch.nonzero(ids == label).squeeze(1)
        subset = data[members.to(data.device)] if isinstance(data, Tensor) else data[members.numpy()]
        mean, spectrum = moments.principal(subset, rank, tail)
        weights.append(float(len(members)))
        means.append(mean)
        spectra.append(floored(spectrum, floor))
    stacked = torch.stack(means)
    wide = isinstance(data, Tensor) and data.dtype == torch.float64
    return weights, stacked if wide else stacked.float(), spectra
