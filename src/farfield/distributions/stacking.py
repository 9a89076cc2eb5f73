"""Covariances of mixture components, brought to one stacked form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum


def floored(spectrum: Spectrum, floor: float) -> Spectrum:
    """The spectrum with every eigenvalue raised to at least ``floor``."""
    if floor <= 0:
        return spectrum
    assert spectrum.basis is not None
    tail = max(spectrum.tail, floor) if spectrum.tail_dim else 0.0
    return Spectrum.low_rank(spectrum.basis, spectrum.values.clamp(min=floor), tail)


def stack(covariances: Any, count: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bases (K, d, r), values (K, r), mask (K, r) and tails (K,), all float64; shorter bases are padded with zeros."""
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
    rank = max(s.rank for s in spectra)
    bases = torch.zeros(count, dim, rank, dtype=torch.float64, device=device)
    values = torch.zeros(count, rank, dtype=torch.float64, device=device)
    mask = torch.zeros_like(values)
    for k, s in enumerate(spectra):
        if s.rank:
            eye = torch.eye(dim, dtype=torch.float64, device=s.values.device)
            basis = s.basis if s.basis is not None else s.expand(eye).T
            basis = basis.to(device, torch.float64)
            # One Newton step towards orthonormal columns: a basis rounded to float32 would tilt ‖y‖² − ‖Uᵀy‖².
            gram = basis.T @ basis
            gram.diagonal().sub_(1)
            bases[k, :, : s.rank] = basis - basis @ gram / 2
        values[k, : s.rank] = s.values.to(device)
        mask[k, : s.rank] = 1
    tails = torch.tensor([s.tail if s.tail_dim else 0.0 for s in spectra], dtype=torch.float64, device=device)
    return bases, values, mask, tails
