"""Covariances of mixture components, brought to one stacked form, and the products with all bases at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

#: Elements of the float64 copy of a few bases that a product in float64 makes at a time: 16 MB.
_COPY = 1 << 21

Pick = slice | Tensor


def floored(spectrum: Spectrum, floor: float) -> Spectrum:
    """The spectrum with every eigenvalue raised to at least ``floor``."""
    if floor <= 0:
        return spectrum
    assert spectrum.basis is not None
    tail = max(spectrum.tail, floor) if spectrum.tail_dim else 0.0
    return Spectrum.low_rank(spectrum.basis, spectrum.values.clamp(min=floor), tail)


class Bases(nn.Module):
    """U_i for all components, side by side as rows, so that a batch meets them in one matrix product.

    ``rows`` (K, r, d) has the type given, float32 or float64, and is the only copy that is always there. Rounded to
    float32, columns are no longer orthonormal, which would tilt ``‖y‖² − ‖Uᵀy‖²``; so ``tilt`` (K, r, r) holds
    ``ÛᵀÛ − I`` of the rounded columns and products in float64 are with ``Û (I − tilt/2)``, orthonormal to 1e-14. They
    convert a few bases at a time. Products in float32 with float64 rows keep a float32 copy from the first one on;
    ``.float()`` makes that the only one.

    Args:
        spectra: one for each component, on ``dim`` coordinates.
        dim: d.
        dtype: of the rows.
        device: where they are.
    """

    rows: Tensor
    tilt: Tensor | None

    def __init__(self, spectra: Sequence[Spectrum], dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dim, self.components, self.rank = dim, len(spectra), max(s.rank for s in spectra)
        shape = (self.components, self.rank)
        rows = torch.zeros(*shape, dim, dtype=dtype, device=device)
        narrow = dtype != torch.float64
        tilt = torch.zeros(*shape, self.rank, device=device) if narrow else None
        for k, s in enumerate(spectra):
            if s.rank:
                straight = _straight(_basis(s).to(device, torch.float64))
                rows[k, : s.rank] = straight
                if tilt is not None:
                    tilt[k, : s.rank, : s.rank] = _tilt(rows[k, : s.rank])
        self.register_buffer("rows", rows)
        self.register_buffer("tilt", tilt)
        self._narrow: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bases:
        before, tilt = self.rows, self.tilt
        self._narrow = None
        super()._apply(fn, recurse)
        if self.rows.is_meta or self.rows.dtype == before.dtype:
            return self
        dtype = torch.float64 if self.rows.dtype == torch.float64 else torch.float32
        device = self.rows.device
        if dtype == before.dtype:
            # A type narrower than float32: the bases stay what they are.
            self.rows, self.tilt = before.to(device), None if tilt is None else tilt.to(device)
            return self
        self.rows = before.to(device, dtype)
        if dtype == torch.float64:
            for basis in self.rows:
                basis.copy_(_straight(basis))
            self.tilt = None
        else:
            self.tilt = torch.stack([_tilt(basis) for basis in self.rows])
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._narrow = None

    def narrow(self) -> Tensor:
        """The rows in float32, (K, r, d)."""
        if self.rows.dtype == torch.float32:
            return self.rows
        if self._narrow is None:
            # An ordinary tensor, of use outside of inference mode too.
            with torch.inference_mode(False):
                self._narrow = self.rows.float()
        return self._narrow

    def straight(self, k: int) -> Tensor:
        """U_k in float64, (d, r); columns beyond a component's own rank are zero."""
        wide = self.rows[k].double()
        return (wide if self.tilt is None else wide - self.tilt[k].double() @ wide / 2).T

    def _chunks(self, pick: Pick) -> list[Pick]:
        if self.tilt is None:
            return [pick]
        step = max(1, _COPY // max(1, self.rank * self.dim))
        if isinstance(pick, Tensor):
            return list(pick.split(step))
        start, stop, _ = pick.indices(self.components)
        return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]

    def project(self, y: Tensor, pick: Pick = slice(None)) -> Tensor:
        """``U_iᵀ y`` in float64: (B, d) to (B, k, r) for the components picked."""
        parts = []
        for chunk in self._chunks(pick):
            rows = self.rows[chunk].double()
            c = (y @ rows.flatten(0, 1).T).view(y.shape[0], rows.shape[0], self.rank)
            if self.tilt is not None:
                c = c - torch.einsum("bkr,krs->bks", c, self.tilt[chunk].double()) / 2
            parts.append(c)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def lift(self, c: Tensor, dtype: torch.dtype, pick: Pick = slice(None)) -> Tensor:
        """``Σ_i U_i c_i``, (B, k, r) to (B, d), computed in float64 for ``dtype`` float64 and in float32 otherwise."""
        if dtype != torch.float64:
            return (c.float().flatten(1) @ self.narrow()[pick].flatten(0, 1)).to(dtype)
        total, start = c.new_zeros(c.shape[0], self.dim, dtype=dtype), 0
        for chunk in self._chunks(pick):
            rows = self.rows[chunk].double()
            a = c[:, start : start + rows.shape[0]]
            start += rows.shape[0]
            if self.tilt is not None:
                a = a - torch.einsum("bkr,krs->bks", a, self.tilt[chunk].double()) / 2
            total = total + a.flatten(1) @ rows.flatten(0, 1)
        return total

    # -- pairs of a row and a component, sorted by component ------------------------------------------------------------

    def project_pairs(self, y: Tensor, row: Tensor, counts: Sequence[int], wide: bool) -> Tensor:
        """``U_kᵀ y_b`` for listed pairs: (P, r) in float64 if ``wide``, otherwise in float32.

        Args:
            y: (B, d) in the type of the product.
            row: b, (P,), in the order of the components.
            counts: how many pairs each component has, K numbers.
        """
        rows = self.rows if wide else self.narrow()
        result, start = y.new_empty(row.shape[0], self.rank), 0
        for k, count in enumerate(counts):
            if count:
                own = slice(start, start + count)
                c = y[row[own]] @ rows[k].to(y.dtype).T
                result[own] = c - c @ self.tilt[k].double() / 2 if wide and self.tilt is not None else c
                start += count
        return result

    def lift_pairs(self, c: Tensor, row: Tensor, counts: Sequence[int], total: Tensor) -> None:
        """Add ``U_k c_p`` of every pair to its row of ``total`` (B, d), in the type of that; ``c`` is (P, r)."""
        wide, start = total.dtype == torch.float64, 0
        rows = self.rows if wide else self.narrow()
        for k, count in enumerate(counts):
            if count:
                own = slice(start, start + count)
                a = c[own]
                a = a - a @ self.tilt[k].double() / 2 if wide and self.tilt is not None else a
                total.index_add_(0, row[own], a @ rows[k].to(total.dtype))
                start += count


def _basis(spectrum: Spectrum) -> Tensor:
    """The eigenvectors as rows (r, d), in descending order of the eigenvalues."""
    if spectrum.basis is not None:
        return spectrum.basis.T
    eye = torch.eye(spectrum.dim, dtype=torch.float64, device=spectrum.values.device)
    return spectrum.expand(eye)[_order(spectrum)]


def _order(spectrum: Spectrum) -> Tensor:
    return torch.argsort(spectrum.values, descending=True, stable=True)


def _tilt(rows: Tensor) -> Tensor:
    gram = rows.double() @ rows.double().T
    # Rows that only fill up are zero and stay so.
    gram.diagonal().sub_((gram.diagonal() > 0).double())
    return gram.float()


def _straight(rows: Tensor) -> Tensor:
    """One Newton step towards orthonormal rows."""
    gram = rows @ rows.T
    gram.diagonal().sub_((gram.diagonal() > 0).double())
    return rows - gram @ rows / 2


def stack(
    covariances: Any, count: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Bases, Tensor, Tensor, Tensor]:
    """Bases, values (K, r), mask (K, r) and tails (K,), the last three in float64; shorter ones are filled with zeros."""
    if isinstance(covariances, Spectrum):
        covariances = [covariances] * count
    if isinstance(covariances, Tensor):
        if tuple(covariances.shape) != (count, dim, dim):
            raise ArgumentError(f"covariances has shape {tuple(covariances.shape)}; expected {(count, dim, dim)}")
        covariances = [Spectrum.from_covariance(c.double()) for c in covariances]
    elif isinstance(covariances, tuple) and len(covariances) == 3 and isinstance(covariances[0], Tensor):
        bases, values, tails = covariances
        if bases.shape[:2] != (count, dim) or values.shape != (count, bases.shape[-1]) or tails.shape != (count,):
            raise ArgumentError(
                f"covariances has shapes {tuple(bases.shape)}, {tuple(values.shape)}, {tuple(tails.shape)}; "
                f"expected ({count}, {dim}, r), ({count}, r), ({count},)"
            )
        covariances = [Spectrum.low_rank(bases[k], values[k], float(tails[k])) for k in range(count)]
    spectra = list(covariances)
    if len(spectra) != count or not all(isinstance(s, Spectrum) and s.dim == dim for s in spectra):
        raise ArgumentError(f"covariances holds {len(spectra)} entries; expected {count} spectra on {dim} coordinates")
    stacked = Bases(spectra, dim, dtype, device)
    values = torch.zeros(count, stacked.rank, dtype=torch.float64, device=device)
    mask = torch.zeros_like(values)
    for k, s in enumerate(spectra):
        values[k, : s.rank] = s.values[_order(s)].to(device)
        mask[k, : s.rank] = 1
    tails = torch.tensor([s.tail if s.tail_dim else 0.0 for s in spectra], dtype=torch.float64, device=device)
    return stacked, values, mask, tails
