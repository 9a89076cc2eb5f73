"""Blocks of data, sums of outer products, and leading eigenpairs: what means, covariances and fits are made of.

A symmetric product computes one triangle: half the operations of a general one, so that float64 costs about what a
general product costs in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Rows of a mirror or a check held at a time.
_STRIP = 512


def block_size(dim: int, limit: int = 4096) -> int:
    """Rows of a block such that its float64 copy stays near 32 MB."""
    return max(1, min(limit, (1 << 22) // max(dim, 1)))


def blocks(data: Tensor | Iterable[Any], size: int | None = None) -> Iterator[Tensor]:
    """The data as tensors (n, *event): slices of a tensor or array, or the blocks of an iterable as they come."""
    if isinstance(data, Tensor | np.ndarray):
        rows = size if size is not None else block_size(math.prod(data.shape[1:]))
        for i in range(0, data.shape[0], rows):
            yield as_tensor(data[i : i + rows])
        return
    for part in data:
        yield as_tensor(part)


def as_tensor(part: Any) -> Tensor:
    """A block as a tensor; a read-only or memory-mapped slice is copied here, one block at a time; booleans are 0 and 1."""
    block = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    return block.to(torch.uint8) if block.dtype == torch.bool else block


@functools.cache
def _pools() -> Any:
    import scipy.linalg.blas  # noqa: F401 - its library has to be loaded before it can be found
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # comes with scikit-learn

    return ThreadpoolController().select(user_api="blas")


def blas_threads() -> AbstractContextManager[Any]:
    """SciPy's BLAS on no more threads than torch may use: it has a pool of its own, which torch does not know."""
    pools, threads = _pools(), torch.get_num_threads()
    if all(pool.num_threads <= threads for pool in pools.lib_controllers):
        return nullcontext()
    return pools.limit(limits=threads)


def add_products(second: Tensor, rows: Tensor) -> None:
    """``second += rowsᵀ rows`` in the upper triangle, in place; the lower one is left undefined until :func:`mirror`.

    Args:
        second: (d, d) float64, contiguous.
        rows: (n, d) float64.
    """
    if second.device.type != "cpu":
        second.addmm_(rows.T, rows)
        return
    from scipy.linalg.blas import dsyrk

    # LAPACK counts columns first, so that our upper triangle is its lower one.
    own = second.numpy().T
    with blas_threads():
        if rows.is_contiguous():
            dsyrk(1.0, rows.numpy().T, beta=1.0, c=own, lower=1, overwrite_c=1)
        else:
            # The transpose of a contiguous matrix needs no copy either; anything else is copied by the wrapper.
            dsyrk(1.0, rows.numpy(), beta=1.0, c=own, trans=1, lower=1, overwrite_c=1)


def mirror(second: Tensor) -> Tensor:
    """Copy the upper triangle of (d, d) onto the lower one, in place and in strips; returns its argument."""
    d = second.shape[0]
    for i in range(0, d, _STRIP):
        j = min(i + _STRIP, d)
        second[j:, i:j] = second[i:j, j:].T
        own = second[i:j, i:j]
        own.copy_(own.triu() + own.triu(1).T)
    return second


def eigenpairs(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The largest ``rank`` eigenvalues of a symmetric matrix, descending and ≥ 0, and their eigenvectors.

    All of them by default. A minority is found at about half of the cost: the others are never transformed back.

    Args:
        matrix: (d, d) float64, both triangles; it may be overwritten.

    Returns:
        (r,) and (d, r), float64.
    """
    d = matrix.shape[0]
    if rank is not None and 2 * rank <= d and d >= 64 and matrix.device.type == "cpu":
        if not rank:
            return matrix.new_zeros(0), matrix.new_zeros(d, 0)
        from scipy.linalg import eigh

        with blas_threads():
            found, basis = eigh(
                matrix.numpy().T, subset_by_index=(d - rank, d - 1), driver="evr", overwrite_a=True, check_finite=False
            )
        values, vectors = torch.from_numpy(found), torch.from_numpy(basis)
    else:
        values, vectors = torch.linalg.eigh(matrix)
    keep = d if rank is None else rank
    return values.flip(0)[:keep].clamp(min=0), vectors.flip(1)[:, :keep].contiguous()
