"""Means and covariances as running sums: taken in block by block, merged, kept in files.

Points are shifted by the mean of the first block and summed in float64, so that a mean far from zero costs no digits
(Chan, Golub & LeVeque 1983): ``Σ = E[y yᵀ] − E[y] E[y]ᵀ`` with ``y = x − shift``. The divisor is N, so that a mixture
made of cluster statistics has exactly the covariance of its data (law of total covariance).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics.covariance import add_products, blocks, eigenpairs, mirror
from farfield.numerics.spectrum import Spectrum

_FORMAT = "farfield moments 1"


@dataclass(frozen=True)
class Moments:
    """Sample statistics: ``count`` N, ``mean`` (*event) and ``covariance`` (d, d), float64, divisor N."""

    count: int
    mean: Tensor
    covariance: Tensor


class Shifted:
    """Points about a shift, in float64: takes blocks in, counts and checks them."""

    def __init__(self) -> None:
        self.count = 0
        self.event: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.shift = torch.zeros(0, dtype=torch.float64)
        self.total = torch.zeros(0, dtype=torch.float64)

    def rows(self, data: Tensor | np.ndarray | Iterable[Any]) -> Iterator[Tensor]:
        """The points less the shift, (n, d) block by block, each counted before it is handed out."""
        for part in blocks(data):
            if part.ndim < 2:
                raise DataError(f"a block of data has shape {tuple(part.shape)}; expected (N, *event)")
            if part.shape[0] == 0:
                continue
            flat = part.detach().flatten(1)
            if not self.count:
                self.event = tuple(part.shape[1:])
                self.dtype = part.dtype if part.is_floating_point() else torch.float32
                self.shift = flat.to(torch.float64).mean(0)
                self.total = torch.zeros_like(self.shift)
            elif tuple(part.shape[1:]) != self.event:
                raise DataError(f"a block of data has events of shape {tuple(part.shape[1:])}; expected {self.event}")
            y = torch.sub(flat, self.shift)
            self.count += y.shape[0]
            self.total += y.sum(0)
            yield y

    def check(self) -> None:
        """Refuse sums of nothing, and of values that are not finite."""
        if not self.count:
            raise DataError("the data are empty")
        if not bool(torch.isfinite(self.total).all()):
            raise DataError("the data hold values that are not finite")

    @property
    def mean(self) -> Tensor:
        """The mean of what has been taken in, (*event) float64."""
        self.check()
        return (self.shift + self.total / self.count).view(self.event)


class MomentSums(Shifted):
    """Mean and covariance of data that arrive in blocks, in several processes or over several runs.

    Memory: one d×d matrix in float64 and one block. Example::

        sums = MomentSums(pixel_range=(-1, 1))
        for images in loader:
            sums.update(images)
        sums.save("cifar10.safetensors")
        gauss = Gaussian.fit(MomentSums.load("cifar10.safetensors", pixel_range=(-1, 1)))

    Args:
        pixel_range: the values of black and white in the data, where they are images. It is kept with the statistics:
            those of [0, 1] images are wrong by a factor 4 for a network that sees [−1, 1].
        digest: of the data set (``DataSet.digest``).
    """

    def __init__(self, pixel_range: tuple[float, float] | None = None, digest: str | None = None) -> None:
        super().__init__()
        self.pixel_range = _range(pixel_range)
        self.digest = digest
        self._second = torch.zeros(0, 0, dtype=torch.float64)
        # Σ‖y‖² y, Σ‖y‖² and Σ‖y‖⁴: enough for the fourth moment about any other point.
        self._cubed, self._norms = torch.zeros(0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        self._spectrum: Spectrum | None = None

    def update(self, data: Tensor | np.ndarray | Iterable[Any]) -> MomentSums:
        """Take in (n, *event) points, in memory or memory-mapped, or an iterable of such blocks; returns self.

        Raises:
            DataError: for events of another shape than before.
        """
        for y in self.rows(data):
            self._spectrum = None
            if not self._second.numel():
                self._second = torch.zeros(y.shape[1], y.shape[1], dtype=torch.float64, device=y.device)
                self._cubed, self._norms = torch.zeros_like(y[0]), y.new_zeros(2)
            add_products(self._second, y)
            norms = torch.linalg.vector_norm(y, dim=1).square()
            self._cubed += norms @ y
            self._norms += torch.stack((norms.sum(), norms @ norms))
        return self

    def merge(self, other: MomentSums) -> MomentSums:
        """Add what another accumulator on the same device has taken in; returns self.

        The result is that of one pass, up to rounding.

        Raises:
            DataError: if the events differ in shape or the images in their scale.
        """
        if not other.count:
            return self
        if self.count and other.event != self.event:
            raise DataError(f"statistics of events of shape {other.event}; expected {self.event} to merge")
        if other.pixel_range != self.pixel_range and (self.count or self.pixel_range is not None):
            raise DataError(f"statistics of pixel range {other.pixel_range}; expected {self.pixel_range} to merge")
        if not self.count:
            self.event, self.dtype, self.pixel_range = other.event, other.dtype, other.pixel_range
            self.digest = self.digest or other.digest
            self.shift = other.shift.clone()
            self.total, self._cubed = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
            self._second, self._norms = torch.zeros_like(other._second), torch.zeros_like(other._norms)
        if self.digest != other.digest:
            self.digest = None
        if torch.promote_types(self.dtype, other.dtype) != self.dtype:
            self.dtype = other.dtype
        self._spectrum = None
        step = other.shift - self.shift
        cubed, norms = other._about(step)
        self._cubed += cubed
        self._norms += norms
        self._second += other._second
        self._second.addr_(step, other.total).addr_(other.total, step).addr_(step, step, alpha=other.count)
        self.total += other.total + other.count * step
        self.count += other.count
        return self

    def _about(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """``Σ‖z‖² z`` and ``(Σ‖z‖², Σ‖z‖⁴)`` for ``z = y + step``."""
        n, s2, along = self.count, step @ step, step @ self.total
        # Only the upper triangle holds the sums.
        upper = mirror(self._second) @ step
        squared, fourth = self._norms
        moved = squared + 2 * along + n * s2
        cubed = self._cubed + 2 * upper + s2 * self.total + moved * step
        fourth = fourth + 4 * (step @ upper + step @ self._cubed + s2 * along) + s2 * (2 * squared + n * s2)
        return cubed, torch.stack((moved, fourth))

    @property
    def fourth(self) -> float:
        """``E‖x − μ‖⁴``."""
        return float(self._about(-self.total / self.count)[1][1]) / self.count

    def moments(self) -> Moments:
        """Count, mean and covariance of what has been taken in so far.

        Raises:
            DataError: before the first point, or if a value is not finite.
        """
        return self._moments(self._second.clone())

    def finish(self) -> Moments:
        """As :meth:`moments`, but the sums turn into the covariance, without a second d×d matrix, and start anew."""
        result = self._moments(self._second)
        self.count, self._second, self._spectrum = 0, torch.zeros(0, 0, dtype=torch.float64), None
        return result

    def _moments(self, second: Tensor) -> Moments:
        mean = self.mean
        offset = self.total / self.count
        return Moments(self.count, mean, mirror(second.div_(self.count).addr_(offset, offset, alpha=-1)))

    def spectrum(self) -> Spectrum:
        """All eigenvalues and eigenvectors (float64) of the covariance, found once and kept until the next update."""
        if self._spectrum is None:
            self._spectrum = _full(*eigenpairs(self.moments().covariance))
        return self._spectrum

    def rescaled(self, pixel_range: tuple[float, float]) -> MomentSums:
        """The statistics of the same images on another scale: ``x' = a x + b``, so ``μ' = a μ + b`` and ``Σ' = a² Σ``.

        Raises:
            ArgumentError: if the present scale is not known.
        """
        if self.pixel_range is None:
            raise ArgumentError("the statistics have no pixel_range; give it when they are made")
        low, high = self.pixel_range
        new = _range(pixel_range)
        assert new is not None
        a = (new[1] - new[0]) / (high - low)
        result = MomentSums(new, self.digest)
        result.count, result.event, result.dtype = self.count, self.event, self.dtype
        result.shift, result.total = a * self.shift + (new[0] - a * low), a * self.total
        result._second, result._cubed = a**2 * self._second, a**3 * self._cubed
        result._norms = self._norms * self._norms.new_tensor([a**2, a**4])
        if self._spectrum is not None:
            assert self._spectrum.basis is not None
            result._spectrum = _full(a**2 * self._spectrum.values, self._spectrum.basis)
        return result

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, spectrum: bool = False) -> None:
        """Write the statistics as safetensors, atomically; :meth:`load` goes on from them to the last bit.

        The file holds ``mean`` (d,), ``shift``, ``total`` = Σ (x − shift), ``products`` = Σ (x − shift)(x − shift)ᵀ
        and the sums of norms, and a JSON header with count, divisor, shape, type, pixel range and digest.

        Args:
            path: where to.
            spectrum: store the eigendecomposition too, so that it is never computed again.
        """
        from safetensors.torch import save_file

        tensors = {"mean": self.mean.flatten(), "shift": self.shift, "total": self.total, "cubed": self._cubed}
        tensors |= {"norms": self._norms, "products": mirror(self._second)}
        if spectrum:
            own = self.spectrum()
            assert own.basis is not None
            tensors |= {"values": own.values, "basis": own.basis}
        header: dict[str, Any] = {"format": _FORMAT, "count": self.count, "divisor": "N", "shape": list(self.event)}
        header |= {"dtype": str(self.dtype).removeprefix("torch."), "pixel_range": self.pixel_range}
        header["digest"] = self.digest
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            # save_file makes files that only the owner may read; a file of our own has the user's default.
            partial.touch()
            mode = partial.stat().st_mode
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                partial,
                {"farfield": json.dumps(header)},
            )
            partial.chmod(mode)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | Path, pixel_range: tuple[float, float] | None = None, digest: str | None = None
    ) -> MomentSums:
        """The statistics that :meth:`save` wrote.

        Args:
            path: the file.
            pixel_range: the scale that the statistics must have; not checked when None.
            digest: of the data they must belong to; not checked when None.

        Raises:
            DataError: if the file is not one of these, or of another scale or data set.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("farfield", "{}"))
                if not isinstance(header, dict) or header.get("format") != _FORMAT:
                    raise DataError(f"{path} does not hold statistics that farfield wrote")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            result = cls(header["pixel_range"] and tuple(header["pixel_range"]), header["digest"])
            result.count, result.event = int(header["count"]), tuple(int(n) for n in header["shape"])
            result.dtype = {"float64": torch.float64}.get(header["dtype"], torch.float32)
            d = math.prod(result.event)
            if result.count < 1 or not all(n >= 0 for n in result.event):
                raise DataError(f"{path} holds statistics of {result.count} points of shape {result.event}")
            shapes = {"shift": (d,), "total": (d,), "cubed": (d,), "norms": (2,), "products": (d, d)}
            shapes |= {"values": (d,), "basis": (d, d)} if "values" in tensors else {}
            for name, shape in shapes.items():
                own = tensors[name]
                if tuple(own.shape) != shape or own.dtype != torch.float64 or not bool(torch.isfinite(own).all()):
                    raise DataError(f"{path}: {name} is not a finite float64 tensor of shape {shape}")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"{path} does not hold statistics that farfield wrote: {error}") from error
        for name, wanted, stored in (("pixel_range", _range(pixel_range), result.pixel_range),
                                     ("digest", digest, result.digest)):  # fmt: skip
            if wanted is not None and wanted != stored:
                raise DataError(f"{path} has {name} = {stored}; expected {wanted}")
        result.shift, result.total, result._cubed = tensors["shift"], tensors["total"], tensors["cubed"]
        result._norms, result._second = tensors["norms"], tensors["products"]
        if "values" in tensors:
            result._spectrum = _full(tensors["values"], tensors["basis"])
        return result


def _full(values: Tensor, basis: Tensor) -> Spectrum:
    """A spectrum from all eigenpairs, in descending order."""
    return Spectrum("basis", values.shape[0], values, 0.0, basis)


def _range(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(v) for v in value)
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        raise ArgumentError(f"pixel_range = {value}; expected the values of black and of white, in this order")
    return low, high
