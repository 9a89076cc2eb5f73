"""Clusters for mixtures: mini-batch k-means with batches of 2048 and seed 0 (Wang & Vastola 2024, A.5).

Large problems are clustered in leading principal coordinates, which hold 99 % of the variance: at most a hundredth of a
squared distance is left out on average, and time and memory fall with the number of coordinates. Only the labels are used
further; means and covariances are those of the data themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams
from farfield.numerics.covariance import as_tensor, blocks

BATCH = 2048
#: Fraction of the variance that principal coordinates hold.
ENERGY = 0.99
#: From this many numbers in the centres (K·d) on, k-means works in principal coordinates.
_ROTATE = 1 << 16
#: Points from which principal coordinates and additional centres are found.
_SAMPLE = 8192


@dataclass(frozen=True)
class Clusters:
    """A clustering: ``labels`` (N,) int64, of which some may not occur, and ``centres`` (K, r) in its coordinates."""

    labels: Tensor
    centres: np.ndarray


def clusters(data: Tensor | np.ndarray, components: int, seed: int = 0) -> Tensor:
    """The label (N,) of every point (N, *event) after k-means with ``components`` centres.

    Raises:
        ArgumentError: if ``components`` is not between 1 and N.
        DataError: if a value is not finite.
    """
    check_components(components, data.shape[0])
    return kmeans(coordinates(data, components, seed), components, seed).labels


def check_components(components: int, count: int) -> None:
    """Refuse a number of clusters that is not between 1 and the number of points."""
    if not 1 <= components <= count:
        raise ArgumentError(f"components = {components}; expected 1 to the number of points, {count}")


def coordinates(data: Tensor | np.ndarray, components: int, seed: int = 0) -> np.ndarray:
    """What k-means works on: the points (N, d) themselves, or (N, r) principal coordinates in float32.

    Raises:
        DataError: if a value is not finite.
    """
    flat = data.reshape(data.shape[0], -1)
    flat = flat.detach() if isinstance(flat, Tensor) else flat
    basis = None
    # One cluster and one for each point need no distances.
    if components * flat.shape[1] >= _ROTATE and 1 < components < flat.shape[0]:
        mean, basis = _principal(flat, seed)
    if basis is None:
        if isinstance(flat, Tensor):
            flat = (flat if flat.dtype in (torch.float32, torch.float64) else flat.float()).cpu()
        points = np.asarray(flat, dtype=None if str(flat.dtype).endswith(("float32", "float64")) else np.float32)
    else:
        points = np.concatenate([((part.float() - mean) @ basis).cpu().numpy() for part in blocks(flat)])
    if not np.isfinite(points.sum()):
        raise DataError("the data hold values that are not finite")
    return points


def _principal(flat: Tensor | np.ndarray, seed: int) -> tuple[Tensor, Tensor | None]:
    """Mean (d,) and the fewest principal axes (d, r) with ``ENERGY`` of the variance of a sample, if r <= d/3.

    The axes come from a random sketch of the sample with one power iteration (Halko, Martinsson & Tropp 2011).
    """
    n, d = flat.shape
    chosen = streams.permutation(seed, n, purpose="k-means sample")[:_SAMPLE].sort().values
    y = as_tensor(flat[chosen.to(flat.device)] if isinstance(flat, Tensor) else flat[chosen.numpy()]).float()
    mean = y.mean(0)
    if not bool(torch.isfinite(mean).all()):
        raise DataError("the data hold values that are not finite")
    y -= mean
    generator = torch.Generator().manual_seed(streams.derive(seed, "k-means sketch") >> 1)
    start = torch.randn(len(y), max(1, min(d // 3, len(y) - 1)), generator=generator).to(y.device)
    axes = torch.linalg.qr(y.T @ start)[0]
    axes = torch.linalg.qr(y.T @ (y @ axes))[0]
    c = y @ axes
    values, vectors = torch.linalg.eigh(c.T @ c)
    share = values.flip(0).double().cumsum(0) / y.square().sum(dtype=torch.float64).clamp(min=1e-300)
    found = int((share < ENERGY).sum()) + 1
    return mean, axes @ vectors.flip(1)[:, :found] if found <= len(values) else None


def kmeans(points: np.ndarray, components: int, seed: int = 0, start: np.ndarray | None = None) -> Clusters:
    """Mini-batch k-means of points (N, r).

    Args:
        points: what :func:`coordinates` returned.
        components: K. One point each when it is N.
        seed: of the first centres and the batches.
        start: (k, r) with k <= K, centres to start from; the missing ones are drawn by :func:`extended`. Without them
            k-means++ is tried three times.
    """
    if components == 1:
        return Clusters(torch.zeros(len(points), dtype=torch.int64), points.mean(0, keepdims=True))
    if components == len(points):
        return Clusters(torch.arange(components), points)
    from sklearn.cluster import MiniBatchKMeans

    common = {"n_clusters": components, "batch_size": BATCH, "random_state": seed}
    if start is None:
        model = MiniBatchKMeans(n_init=3, **common)
    else:
        model = MiniBatchKMeans(init=extended(points, start, components, seed), n_init=1, **common)
    labels = np.asarray(model.fit_predict(points), dtype=np.int64)
    return Clusters(torch.from_numpy(labels), np.asarray(model.cluster_centers_))


def extended(points: np.ndarray, centres: np.ndarray, components: int, seed: int = 0) -> np.ndarray:
    """``centres`` (k, r) and as many points as make them (K, r), far from those before with high probability.

    A point of a sample is drawn with probability proportional to its squared distance to the nearest centre so far
    (Arthur & Vassilvitskii 2007).
    """
    if not 0 < len(centres) <= components:
        raise ArgumentError(f"centres holds {len(centres)} centres; expected 1 to {components}")
    chosen = streams.permutation(seed, len(points), purpose="k-means sample")[: max(_SAMPLE, 3 * components)]
    sample = torch.from_numpy(np.asarray(points[chosen.sort().values.numpy()]))
    found = torch.from_numpy(np.array(centres, dtype=points.dtype))
    nearest = torch.cdist(sample, found).square().amin(1)
    missing = components - len(centres)
    draws = streams.uniform(seed, range(missing), purpose="k-means centres", dtype=torch.float64)
    added = [found]
    for u in draws.tolist():
        total = nearest.double().cumsum(0)
        k = min(int(torch.searchsorted(total, u * float(total[-1]), right=True)), len(sample) - 1)
        added.append(sample[k : k + 1])
        nearest = torch.minimum(nearest, (sample - sample[k]).square().sum(1))
    return torch.cat(added).numpy()
