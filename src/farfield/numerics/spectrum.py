"""Symmetric positive semidefinite operators by their spectrum: ``Σ = U diag(λ) Uᵀ + tail (I − U Uᵀ)``.

Every function of such an operator is one spectral filter ``f(Σ) y = U f(λ) Uᵀ y + f(tail) (y − U Uᵀ y)``, and that is
all a Gaussian needs. U is held in one of three ways: as a matrix (d, r), full or of low rank; as the identity; or as a
fixed orthogonal transform (DCT over space, rotation over channels), which never forms a d×d matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays
from farfield.numerics.dct import apply_axes, dct_matrix, layout

Tail = Literal["mean", "zero"]


def _values(values: Tensor | Sequence[float], name: str = "values") -> Tensor:
    """Eigenvalues as float64, finite, with rounding below zero clamped away."""
    result = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if result.ndim != 1:
        raise ArgumentError(f"{name} has shape {tuple(result.shape)}; expected one axis")
    if not bool(torch.isfinite(result).all()):
        raise ArgumentError(f"{name} holds values that are not finite")
    largest = float(result.max()) if result.numel() else 0.0
    if result.numel() and float(result.min()) < -1e-4 * max(largest, 1e-300):
        raise ArgumentError(f"{name} has the negative eigenvalue {float(result.min()):g}; a covariance has none")
    return result.clamp_(min=0.0)


class Spectrum(nn.Module):
    """A symmetric positive semidefinite operator on flattened vectors (B, d), held by its eigenvalues.

    Use the constructors :meth:`from_covariance`, :meth:`low_rank`, :meth:`isotropic`, :meth:`diagonal` and :meth:`dct`.
    Eigenvalues are float64 whatever ``.to(dtype)`` says; results have the type of the argument. A state of another type
    than the basis costs memory for a second basis (d, r) in the state's type, made at the first call and kept until the
    module is moved: ``.to(dtype)`` makes that of the states the only one.

    Attributes:
        kind: ``"basis"``, ``"diagonal"`` or ``"dct"``.
        dim: d.
        values: eigenvalues (r,), float64, ≥ 0; descending for ``"basis"``, in the transform's order otherwise.
        tail: the eigenvalue of every direction outside the span of U.
    """

    values: Tensor
    basis: Tensor | None

    def __init__(
        self,
        kind: str,
        dim: int,
        values: Tensor,
        tail: float = 0.0,
        basis: Tensor | None = None,
        event_shape: tuple[int, ...] | None = None,
        channel_basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(tail) and tail >= 0):
            raise ArgumentError(f"tail = {tail}; expected a finite number >= 0")
        self.kind = kind
        self.dim = int(dim)
        self.tail = float(tail)
        self.event_shape = event_shape
        self.register_buffer("values", values)
        self.register_buffer("basis", basis)
        self.register_buffer("channel_basis", channel_basis)
        self._axes = 0
        self._lift: Tensor | None = None
        if kind == "dct":
            assert event_shape is not None
            _, space = layout(event_shape)
            self._axes = len(space)
            dtype = torch.float32 if channel_basis is None else channel_basis.dtype
            for i, n in enumerate(space):
                self.register_buffer(f"axis_{i}", dct_matrix(n).to(values.device, dtype), persistent=False)
        self.smallest = self._lowest()

    def _lowest(self) -> float:
        """The smallest eigenvalue, read once: later questions about singularity must not wait for a device."""
        lowest = float(self.values.min()) if self.values.numel() else math.inf
        if self.tail_dim:
            lowest = min(lowest, self.tail)
        return lowest if math.isfinite(lowest) else 0.0

    # -- constructors -------------------------------------------------------------------------------------------------

    @classmethod
    def from_covariance(cls, matrix: Tensor) -> Spectrum:
        """The full eigendecomposition of a covariance (d, d), computed in float64.

        Raises:
            ArgumentError: if the matrix is not square, finite, symmetric and positive semidefinite up to rounding.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ArgumentError(f"covariance has shape {tuple(matrix.shape)}; expected (d, d)")
        full = matrix.detach().to(torch.float64)
        if not bool(torch.isfinite(full).all()):
            raise ArgumentError("covariance holds values that are not finite")
        scale = float(full.abs().max()) if full.numel() else 0.0
        if float((full - full.T).abs().max()) > 1e-4 * scale:
            raise ArgumentError("covariance is not symmetric")
        values, basis = torch.linalg.eigh((full + full.T) / 2)
        dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
        return cls("basis", matrix.shape[0], _values(values.flip(0)), 0.0, basis.flip(1).to(dtype).contiguous())

    @classmethod
    def low_rank(cls, basis: Tensor, values: Tensor | Sequence[float], tail: float = 0.0) -> Spectrum:
        """``U diag(λ) Uᵀ + tail (I − U Uᵀ)`` from orthonormal columns U (d, r) and λ (r,), r from 0 to d.

        Raises:
            ArgumentError: if the sizes disagree or the columns are not orthonormal.
        """
        spectrum = _values(values).to(basis.device)
        if basis.ndim != 2 or basis.shape[1] != spectrum.shape[0] or basis.shape[1] > basis.shape[0]:
            raise ArgumentError(
                f"basis has shape {tuple(basis.shape)} for {spectrum.shape[0]} values; expected (d, r) with r <= d"
            )
        basis = basis.detach().to(torch.float64 if basis.dtype == torch.float64 else torch.float32)
        gram = basis.T @ basis
        gram.diagonal().sub_(1)
        gap = float(gram.abs().max()) if gram.numel() else 0.0
        if not gap < 1e-3:
            raise ArgumentError(f"the columns of basis are not orthonormal (largest deviation {gap:.2g})")
        order = torch.argsort(spectrum, descending=True)
        return cls("basis", basis.shape[0], spectrum[order], tail, basis[:, order].contiguous())

    @classmethod
    def isotropic(cls, dim: int, value: float) -> Spectrum:
        """``value · I`` in ``dim`` dimensions: rank 0 with a tail."""
        return cls("basis", dim, torch.zeros(0, dtype=torch.float64), value, torch.zeros(dim, 0))

    @classmethod
    def diagonal(cls, values: Tensor | Sequence[float]) -> Spectrum:
        """``diag(values)``: the identity basis, no matrix product anywhere."""
        spectrum = _values(values)
        return cls("diagonal", spectrum.shape[0], spectrum)

    @classmethod
    def dct(
        cls, event_shape: Sequence[int], values: Tensor | Sequence[float], channel_basis: Tensor | None = None
    ) -> Spectrum:
        """Diagonal in the orthonormal DCT-II over the spatial axes, after a rotation of the channels.

        Args:
            event_shape: (C, H, W, …), or spatial axes alone when there are one or two.
            values: the eigenvalues, d of them in the order of the flattened event.
            channel_basis: orthogonal (C, C) whose columns are the rotated channels; the identity by default.
        """
        shape = tuple(int(n) for n in event_shape)
        spectrum = _values(torch.as_tensor(values, dtype=torch.float64).flatten())
        if spectrum.shape[0] != math.prod(shape):
            raise ArgumentError(f"{spectrum.shape[0]} values for event shape {shape}; expected {math.prod(shape)}")
        if channel_basis is not None:
            channels = layout(shape)[0]
            if tuple(channel_basis.shape) != (channels, channels):
                raise ArgumentError(f"channel_basis has shape {tuple(channel_basis.shape)}; expected {(channels,) * 2}")
            wide = channel_basis.detach().double()
            gram = wide.T @ wide - torch.eye(channels, dtype=torch.float64, device=wide.device)
            if not float(gram.abs().max()) < 1e-3:
                raise ArgumentError("channel_basis is not orthogonal")
            channel_basis = channel_basis.detach().clone()
        return cls("dct", math.prod(shape), spectrum, event_shape=shape, channel_basis=channel_basis)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """r, the number of eigenvalues held one by one."""
        return self.values.shape[0]

    @property
    def tail_dim(self) -> int:
        """d − r, the multiplicity of the tail eigenvalue."""
        return self.dim - self.values.shape[0]

    @property
    def trace(self) -> float:
        """``Σ λ + tail (d − r)``, the total variance."""
        return float(self.values.sum()) + self.tail * self.tail_dim

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.kind}, dim={self.dim}, rank={self.rank}, tail={self.tail:g}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Spectrum:
        # A change of type is meant for the states; the eigenvalues stay in float64.
        before = self.values
        super()._apply(fn, recurse)
        self._lift = None
        if self.values.dtype != torch.float64 and not self.values.is_meta:
            self.values = before.to(self.values.device)
        for i in range(self._axes):
            matrix = getattr(self, f"axis_{i}")
            if not matrix.is_meta:
                # Made anew: float32 rounding must not survive a change to float64.
                setattr(self, f"axis_{i}", dct_matrix(matrix.shape[0]).to(matrix))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._lift = None

    def get_extra_state(self) -> Tensor:
        """The tail, which belongs to the state: without it a loaded operator would keep its own."""
        return torch.tensor(self.tail, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tail of a state; the eigenvalues have been loaded by then."""
        self.tail = float(state)
        self.smallest = self._lowest()

    # -- the transform ------------------------------------------------------------------------------------------------

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """U in the type of the state; a copy in another type than its own is made once and kept."""
        basis = self.basis
        assert basis is not None
        if basis.dtype == dtype:
            return basis
        if self._lift is None or self._lift.dtype != dtype or self._lift.device != basis.device:
            # An ordinary tensor, of use outside of inference mode too.
            with torch.inference_mode(False):
                self._lift = basis.to(dtype)
        return self._lift

    def _transform(self, y: Tensor, inverse: bool) -> Tensor:
        assert self.event_shape is not None
        channels, space = layout(self.event_shape)
        matrices = [getattr(self, f"axis_{i}") for i in range(self._axes)]
        if matrices[0].dtype != y.dtype:
            # float32 matrices would cost a float64 state half of its digits.
            matrices = [dct_matrix(n).to(y) for n in space]
        if inverse:
            matrices = [m.T for m in matrices]
        grid = y.reshape(y.shape[0], channels, *space)
        grid = apply_axes(grid, matrices, 2)
        if isinstance(self.channel_basis, Tensor):
            rotation = self.channel_basis.to(y.dtype)
            mixed = (rotation if inverse else rotation.T) @ grid.reshape(y.shape[0], channels, -1)
            return mixed.reshape(y.shape[0], self.dim)
        return grid.reshape(y.shape[0], self.dim)

    def project(self, y: Tensor) -> Tensor:
        """Coefficients ``Uᵀ y``: (B, d) to (B, r)."""
        if self.kind == "basis":
            return y @ self._matrix(y.dtype)
        return y if self.kind == "diagonal" else self._transform(y, inverse=False)

    def expand(self, c: Tensor) -> Tensor:
        """The vector with coefficients c, ``U c``: (B, r) to (B, d)."""
        if self.kind == "basis":
            return c @ self._matrix(c.dtype).T
        return c if self.kind == "diagonal" else self._transform(c, inverse=True)

    def filter(self, y: Tensor, gains: Tensor, tail_gain: float | Tensor = 0.0, offset: Tensor | None = None) -> Tensor:
        """``offset + U g Uᵀ y + g_tail (y − U Uᵀ y)`` in one pass; the part outside U is never formed.

        Args:
            y: vectors (B, d).
            gains: g, (r,) or (B, r), any floating type.
            tail_gain: g_tail, a number, () or (B, 1); without effect when r = d.
            offset: a vector (d,) added to the result.

        Returns:
            (B, d) in the type of ``y``.
        """
        if self.kind != "basis":
            scaled = gains.to(y.dtype)
            result = y * scaled if self.kind == "diagonal" else self.expand(self.project(y) * scaled)
            return result if offset is None else result + offset
        basis = self._matrix(y.dtype)
        if self.tail_dim == 0:
            inner = (y @ basis) * gains.to(y.dtype)
            return inner @ basis.T if offset is None else torch.addmm(offset, inner, basis.T)
        if isinstance(tail_gain, Tensor):
            outer = y * tail_gain.to(y.dtype)
            outer = outer if offset is None else outer + offset
        else:
            outer = y * tail_gain if offset is None else torch.add(offset, y, alpha=tail_gain)
        if self.rank == 0:
            return outer
        # The difference of the gains is taken in their own, wider type.
        return torch.addmm(outer, (y @ basis) * (gains - tail_gain).to(y.dtype), basis.T)

    def dense(self) -> Tensor:
        """The matrix (d, d), float64."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.values.device)
        matrix = self.filter(eye, self.values, self.tail)
        return (matrix + matrix.T) / 2

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` largest eigenvalues, descending, (count,) in float64, and unit eigenvectors (count, d).

        Vectors of the tail are any orthonormal ones outside of U.
        """
        order = torch.argsort(self.values, descending=True, stable=True)
        extra = min(count, self.tail_dim)
        values = torch.cat((self.values[order], self.values.new_full((extra,), self.tail)))
        chosen = torch.argsort(values, descending=True, stable=True)[:count]
        inside = chosen < self.rank
        dtype = self.basis.dtype if self.basis is not None else torch.float64
        vectors = torch.zeros(count, self.dim, dtype=dtype, device=values.device)
        eye = torch.zeros(int(inside.sum()), self.rank, dtype=dtype, device=values.device)
        eye[torch.arange(eye.shape[0], device=eye.device), order[chosen[inside]]] = 1
        vectors[inside] = self.expand(eye)
        if eye.shape[0] < count:
            assert self.basis is not None
            filling = torch.randn(self.dim, extra, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            span = torch.linalg.qr(torch.cat((self.basis.double(), filling.to(values.device)), 1))[0]
            vectors[~inside] = span[:, self.rank : self.rank + count - eye.shape[0]].T.to(dtype)
        return values[chosen], vectors

    def truncate(self, rank: int, tail: Tail = "mean") -> Spectrum:
        """Keep the ``rank`` largest eigenvalues and replace the others by their mean or by zero.

        A spectrum in a fixed transform keeps its form: the other values are overwritten.

        Raises:
            ArgumentError: if ``rank`` is not in [0, r] or ``tail`` is neither ``"mean"`` nor ``"zero"``.
        """
        if tail not in ("mean", "zero"):
            raise ArgumentError(f"tail = {tail!r}; expected 'mean' or 'zero'")
        if not 0 <= rank <= self.rank:
            raise ArgumentError(f"rank = {rank}; expected 0 to {self.rank}")
        order = torch.argsort(self.values, descending=True, stable=True)
        dropped = order[rank:]
        count = self.dim - rank
        level = 0.0
        if tail == "mean" and count:
            level = (float(self.values[dropped].sum()) + self.tail * self.tail_dim) / count
        if self.kind != "basis":
            values = self.values.clone()
            values[dropped] = level
            return Spectrum(
                self.kind, self.dim, values, event_shape=self.event_shape,
                channel_basis=self.channel_basis if isinstance(self.channel_basis, Tensor) else None,
            )  # fmt: skip
        assert self.basis is not None
        # `order` is the identity here, for a basis is kept in descending order.
        return Spectrum("basis", self.dim, self.values[:rank].clone(), level, self.basis[:, :rank].contiguous())

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary from which :meth:`from_dict` rebuilds the spectrum bit for bit."""
        result: dict[str, Any] = {"kind": self.kind, "dim": self.dim, "tail": self.tail}
        result["values"] = arrays.encode(self.values)
        if self.basis is not None:
            result["basis"] = arrays.encode(self.basis)
        if self.event_shape is not None:
            result["event_shape"] = list(self.event_shape)
        if isinstance(self.channel_basis, Tensor):
            result["channel_basis"] = arrays.encode(self.channel_basis)
        return result

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Spectrum:
        """The spectrum that :meth:`to_dict` wrote.

        Raises:
            DataError: if a field is missing, of the wrong size, or not finite.
        """
        try:
            kind, dim, tail = value["kind"], value["dim"], float(value["tail"])
            values = arrays.decode(value["values"], "values")
            if kind == "basis":
                basis = arrays.decode(value["basis"], "basis", (dim, values.numel()))
                return cls.low_rank(basis, values, tail)
            if kind == "diagonal" and values.numel() == dim:
                return cls.diagonal(values)
            if kind == "dct":
                rotation = value.get("channel_basis")
                channel = None if rotation is None else arrays.decode(rotation, "channel_basis")
                return cls.dct(value["event_shape"], values, channel)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"not a stored spectrum: {error}") from error
        raise DataError(f"not a stored spectrum: kind {kind!r} with {values.numel()} values in {dim} dimensions")
