"""The laws a model is compared with, fitted to its training data: from the mean alone to the training set itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum

#: Columns of all bases of a mixture side by side; beyond, each component keeps its leading eigenvalues.
_COLUMNS = 8192
#: Up to this many coordinates the Gaussian keeps all of its eigenvalues.
_DENSE = 1024
_LEADING = 512


def mixture_size(count: int) -> int:
    """The clusters for ``count`` data points: √N/4, from 1 to 10."""
    return max(1, min(10, count, round(math.sqrt(count) / 4)))


def mixture_rank(dim: int, components: int) -> int | None:
    """Eigenvalues for each of ``components`` components in ``dim`` coordinates; None for all of them."""
    return None if dim * components <= _COLUMNS else max(1, min(dim, _COLUMNS // components))


def reference_laws(
    data: Tensor,
    *,
    components: int | Sequence[int] | None = None,
    labels: Tensor | None = None,
    spherical: bool = False,
    seed: int = 0,
) -> dict[str, Denoiser]:
    """The laws by name, from the simplest to the most detailed (Wang & Vastola 2024, 2.2 and A.2).

    ======================= ==========================================================================================
    ``isotropic``           mean only: D = μ
    ``spherical``           mean and one variance σ₀² = tr Σ/d: D = (σ₀² x + σ² μ)/(σ₀² + σ²), on request
    ``gaussian``            mean and covariance
    ``classes``             a Gaussian for each class that occurs, where labels are given
    ``mixture``             a Gaussian for each k-means cluster; ``mixture:K`` for each K where several are asked for
    ``empirical``           the data as points, the optimum of the training loss
    ======================= ==========================================================================================

    Above 1024 coordinates the Gaussian keeps its 512 leading eigenvalues, and components keep so many that all bases
    together have at most 8192 columns; what is left out is replaced by its mean.

    Args:
        data: (N, *event).
        components: clusters of the mixture, or several such numbers; by default :func:`mixture_size`.
        labels: classes (N,).
        spherical: whether to include that law.
        seed: of the clustering, any integer.

    Raises:
        ArgumentError: for numbers of components out of range, or labels of another length.
    """
    dim = math.prod(data.shape[1:])
    gaussian = Gaussian.fit(data, rank=None if dim <= _DENSE else _LEADING)
    several = isinstance(components, Sequence)
    sizes = tuple(components) if isinstance(components, Sequence) else (components or mixture_size(len(data)),)
    if components == 0 or len(set(sizes)) != len(sizes):
        raise ArgumentError(f"components = {components}; expected different numbers from 1")
    kmeans = streams.derive(seed, "kmeans") % 2**32  # scikit-learn takes no other seeds
    laws: dict[str, Denoiser] = {"isotropic": Gaussian(gaussian.mean, Spectrum.isotropic(dim, 0.0))}
    if spherical:
        laws["spherical"] = Gaussian(gaussian.mean, Spectrum.isotropic(dim, gaussian.spectrum.trace / dim))
    laws["gaussian"] = gaussian
    if labels is not None:
        count = len(torch.unique(labels))
        laws["classes"] = GaussianMixture.per_class(data, labels.cpu(), rank=mixture_rank(dim, count))
    for size in sizes:
        name = f"mixture:{size}" if several else "mixture"
        laws[name] = GaussianMixture.fit(data, size, rank=mixture_rank(dim, size), seed=kmeans)
    laws["empirical"] = Empirical(data)
    return laws
