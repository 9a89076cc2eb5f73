"""Posterior averages over a finite set of points: ``w_i ∝ k(‖x − y_i‖; σ)``, and ``Σ w_i t_i y_i`` for multipliers t.

Two ways, chosen for each row of a batch by the rounding error that its logits would have in float32.

*Direct*: one streaming pass over blocks with ``x·y_i − ½‖y_i‖²`` from a matrix product. Centring copies no data: with
centre c the logits are ``(x−c)·y_i − ½‖y_i−c‖²`` up to a constant of the row.

*Shortlist*: expanding the square cancels at small σ (at d = 3072 it is wrong by 12.7 nats at σ = 0.002). The pass
then only finds candidates: every point whose weight could exceed ε/N, that is, within ``2σ² ln(N/ε)`` of the smallest
squared distance, with the rounding bound ``sqrt(d) u ‖x‖ ‖y‖`` (Higham & Mary 2019) on both sides. Their distances are
taken by differences, in float64. Rows with too many candidates get a direct pass in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.distributions.base import unit_roundoff
from farfield.errors import DataError
from farfield.numerics.streaming import OnlineSoftmax
from farfield.processes import Process

#: Float32 logits are trusted while their estimated rounding error stays below this many nats.
TOLERANCE = 1e-4
#: The weight that the shortlist may leave out, in all.
DISCARD = 1e-9
#: Up to this many coordinates everything is done in float64: the matrix products are not what costs.
NARROW = 32

#: A set that serves one batch is averaged for a training target, where a few 1e-4 of a weight are far below the noise.
FRESH_TOLERANCE = 4e-4
#: Derivatives subtract averages from each other, so they are held to less.
FINE_TOLERANCE = 2e-5
#: The multipliers t_i of an average: 1; b = v·(y − c); h = ‖y − c‖²; and with the kernel's slope m = −2 ∂log k/∂d² and
#: its value m₀ at a typical distance, "m" for m − m₀ (which m itself would drown), "mb" for m b, "db" for (m − m₀) b.
Tilt = Literal["1", "b", "h", "m", "mb", "db"]


@dataclass
class Averages:
    """``log Σ k_i`` (R,), ``Σ w t y`` (k, R, d) and ``Σ w t`` (k, R): float64, except the vectors of direct rows."""

    log_sum: Tensor
    vectors: Tensor
    scalars: Tensor


@dataclass
class Request:
    """What to average: states x (R, d), levels σ (R,) float64, classes (R,), direction v (R, d), slope m₀ (R,).

    The first ``vectors`` of the ``tilts`` get sums of vectors; all of them get sums of scalars. ``allowed`` (R, N) says
    which points count for which row, in place of the classes.
    """

    x: Tensor
    sigma: Tensor
    tilts: tuple[Tilt, ...] = ("1",)
    vectors: int = 1
    labels: Tensor | None = None
    v: Tensor | None = None
    reference: Tensor | None = None
    allowed: Tensor | None = None

    def rows(self, index: Tensor) -> Request:
        """The request for some of the rows."""
        labels = None if self.labels is None else self.labels[index]
        v = None if self.v is None else self.v[index]
        reference = None if self.reference is None else self.reference[index]
        allowed = None if self.allowed is None else self.allowed[index]
        return Request(self.x[index], self.sigma[index], self.tilts, self.vectors, labels, v, reference, allowed)

    def multipliers(self, b: Tensor | None, h: Tensor, m: Tensor | None, m0: Tensor | None) -> list[Tensor | None]:
        """The tilts for one block (R, n), or for a list of pairs (P,)."""
        known = {"1": None, "b": b, "h": h}
        if m is not None and m0 is not None:
            known |= {"m": m - m0}
            if b is not None:
                known |= {"mb": m * b, "db": (m - m0) * b}
        return [known[name] for name in self.tilts]


def slope(process: Process, squared: Tensor, sigma: Tensor, dim: int) -> Tensor:
    """``m = −2 ∂ log k/∂(d²)``, which is 1/σ² for a Gaussian kernel."""
    # A functional gradient, for this may run inside another transform.
    gradient = torch.func.grad(lambda value: process.log_kernel(value, sigma, dim).sum())(squared)
    return (-2 * gradient).nan_to_num(0.0, 0.0, 0.0)


class Points:
    """A finite set of points with the numbers that every query needs: centre c, ½‖y − c‖², norms.

    A ``fresh`` set serves one batch and is gone: it is measured in one pass, about a rough centre.
    """

    def __init__(self, data: Tensor, labels: Tensor | None, block: int, fresh: bool = False) -> None:
        self.data, self.labels, self.block, self.fresh = data, labels, block, fresh
        self.count, self.dim = data.shape
        self.centre, self.half, bounds = self._glance() if fresh else self._measure()
        # A fresh set on another device is only ever averaged in float64, which needs no bounds and no wait for them.
        cpu = data.device.type == "cpu"
        known: list[float] = bounds.tolist() if cpu or not fresh else [0.0, math.inf, math.inf]
        self.shift, self.largest, self.largest_half = known
        self.bias = (self.shift - self.half).to(data.dtype)

    def _glance(self) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`_measure` gives, with the mean of the first points as centre, in one pass."""
        device = self.data.device
        centre = self.data[:64].double().mean(0).to(self.data.dtype)
        wide = centre.double()
        half = torch.empty(self.count, dtype=torch.float64, device=device)
        # On the CPU a float64 copy of 2 MB stays in the cache, which is what makes this cheap.
        size = max(1, (1 << (18 if device.type == "cpu" else 22)) // self.dim)
        for i in range(0, self.count, size):
            part = self.data[i : i + size].to(torch.float64, copy=True)
            half[i : i + size] = part.sub_(wide).square_().sum(1)
        half /= 2
        if device.type == "cpu" and not bool(torch.isfinite(half).all()):
            raise DataError("the data hold values that are not finite")
        largest = (2 * half.amax()).sqrt() + wide.norm()  # no point is longer
        return centre, half, torch.stack((half.mean(), largest, (half - half.mean()).abs().amax()))

    def _measure(self) -> tuple[Tensor, Tensor, Tensor]:
        """c (d,), ½‖y − c‖² (N,), and three numbers: mean of the latter, largest ‖y‖, largest deviation."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.data.device)
        for _, part in self.blocks(True):
            total += part.sum(0)
        # The centre is a vector of the data's type, so that x − c means the same in both precisions.
        centre = (total / self.count).to(self.data.dtype)
        half = torch.empty(self.count, dtype=torch.float64, device=self.data.device)
        largest = torch.zeros((), dtype=torch.float64, device=self.data.device)
        for i, part in self.blocks(True):
            largest = torch.maximum(largest, part.square().sum(1).amax().sqrt())
            half[i : i + part.shape[0]] = (part - centre.double()).square_().sum(1) / 2
        if not bool(torch.isfinite(half).all()):
            raise DataError("the data hold values that are not finite")
        return centre, half, torch.stack((half.mean(), largest, (half - half.mean()).abs().amax()))

    def blocks(self, wide: bool) -> Iterator[tuple[int, Tensor]]:
        """(start, points) in order; in float64 when ``wide``, then in smaller blocks."""
        convert = wide and self.data.dtype != torch.float64
        # A float64 copy of a block stays at 32 MB.
        size = min(self.block, max(64, (1 << 22) // self.dim)) if convert else self.block
        for i in range(0, self.count, size):
            part = self.data[i : i + size]
            yield i, part.double() if convert else part

    # -- choosing the way ---------------------------------------------------------------------------------------------

    def average(self, request: Request, process: Process) -> Averages:
        """The averages for every row, each by the cheaper way that is accurate."""
        with torch.no_grad(), torch.autocast(self.data.device.type, enabled=False):
            if self.data.dtype == torch.float64 or request.x.dtype == torch.float64 or self.dim <= NARROW:
                return self._direct(request, process, wide=True)
            if self.fresh and self.data.device.type != "cpu":
                # Choosing a way for each row would wait for the device, and float64 is not what costs there.
                return self._direct(request, process, wide=True)
            norms = (request.x - self.centre).double().norm(dim=1)
            steep = self._steepness(norms, request.sigma, process)
            tolerance = FRESH_TOLERANCE if self.fresh else TOLERANCE
            if len(request.tilts) > 1:
                tolerance = FINE_TOLERANCE
            direct = (unit_roundoff() * (norms * self.largest + self.largest_half)) * steep <= tolerance
            if bool(direct.all()):
                return self._direct(request, process, wide=False)
            result = self._empty(request)
            rows = torch.nonzero(direct).squeeze(1)
            if rows.numel():
                self._store(result, rows, self._direct(request.rows(rows), process, wide=False))
            rows = torch.nonzero(~direct).squeeze(1)
            short = request.rows(rows)
            averages, done = self._shortlist(short, process, norms[rows])
            if not bool(done.all()):
                late = torch.nonzero(~done).squeeze(1)
                self._store(averages, late, self._direct(short.rows(late), process, wide=True))
            self._store(result, rows, averages)
            return result

    def spread(self, request: Request, process: Process) -> tuple[Tensor, Tensor]:
        """The weights (R, N) and ``Σ w ‖y − D‖²`` (R,), in float64: for sets whose weights may be held at once."""
        with torch.no_grad(), torch.autocast(self.data.device.type, enabled=False):
            x, centre = request.x.double() - self.centre.double(), self.centre.double()
            sigma = request.sigma.unsqueeze(1)
            constant = (x.square().sum(1) / 2 + x @ centre + self.shift).unsqueeze(1)
            logits = torch.empty(x.shape[0], self.count, dtype=torch.float64, device=x.device)
            for i, part in self.blocks(True):
                j = i + part.shape[0]
                half = constant - torch.addmm(self.shift - self.half[i:j], x, part.T)
                logits[:, i:j] = process.log_kernel((2 * half).clamp_(min=0), sigma, self.dim)
                visible = self._visible(request, i, j)
                if visible is not None:
                    logits[:, i:j].masked_fill_(~visible, -torch.inf)
            weights = logits.softmax(1)
            mean = torch.zeros_like(x)
            for i, part in self.blocks(True):
                mean.addmm_(weights[:, i : i + part.shape[0]], part)
            within = 2 * (weights @ self.half) - (mean - centre).square().sum(1)
            return weights, within.clamp_(min=0)

    def _visible(self, request: Request, i: int, j: int) -> Tensor | None:
        """Which of the points i … j − 1 count for which row, (R, j − i), or None for all."""
        if request.allowed is not None:
            return request.allowed[:, i:j]
        if request.labels is not None and self.labels is not None:
            return self.labels[i:j] == request.labels.unsqueeze(1)
        return None

    def reference(self, x: Tensor, sigma: Tensor, process: Process) -> Tensor:
        """m₀, the kernel's slope at the distance from x (R, d) of an average point: (R,)."""
        typical = (x.double() - self.centre.double()).square().sum(1) + 2 * self.shift
        return slope(process, typical, sigma, self.dim)

    def _steepness(self, norms: Tensor, sigma: Tensor, process: Process) -> Tensor:
        if process.gaussian:
            return sigma**-2
        nearest = (norms - self.largest - self.centre.double().norm()).clamp(min=0).square()
        return slope(process, nearest, sigma, self.dim)

    def _empty(self, request: Request) -> Averages:
        rows, device = request.x.shape[0], self.data.device
        return Averages(
            torch.zeros(rows, dtype=torch.float64, device=device),
            torch.zeros(request.vectors, rows, self.dim, dtype=torch.float64, device=device),
            torch.zeros(len(request.tilts), rows, dtype=torch.float64, device=device),
        )

    @staticmethod
    def _store(target: Averages, rows: Tensor, source: Averages) -> None:
        target.log_sum[rows] = source.log_sum
        target.vectors[:, rows] = source.vectors.to(target.vectors.dtype)
        target.scalars[:, rows] = source.scalars

    # -- direct -------------------------------------------------------------------------------------------------------

    def _direct(self, request: Request, process: Process, wide: bool) -> Averages:
        dtype = torch.float64 if wide else torch.float32
        x, rows = (request.x.to(dtype) - self.centre.to(dtype)), request.x.shape[0]
        queries = x if request.v is None else torch.cat((x, request.v.to(dtype)))
        bias = self.shift - self.half if wide else self.bias
        sigma = request.sigma.unsqueeze(1)
        exact, centre = x.double(), self.centre.double()
        # ½‖x − y‖² = constant − (x·y + bias), with x centred and y not.
        constant = (exact.square().sum(1) / 2 + exact @ centre + self.shift).unsqueeze(1)
        shift_v = None if request.v is None else (request.v.double() @ centre).to(dtype).unsqueeze(1)
        scale = sigma**-2 if process.gaussian else None
        softmax = OnlineSoftmax(rows, self.dim, request.vectors, len(request.tilts), dtype, self.data.device, scale)
        for i, part in self.blocks(wide):
            j = i + part.shape[0]
            along = m = None
            if request.v is None:
                logits = torch.addmm(bias[i:j], queries, part.T)
            else:
                product = queries @ part.T
                logits, along = product[:rows] + bias[i:j], product[rows:]
                if shift_v is not None:
                    along = along - shift_v
            visible = self._visible(request, i, j)
            if visible is not None:
                logits.masked_fill_(~visible, -torch.inf)
            if not process.gaussian:
                squared = (2 * (constant - logits)).clamp_(min=0)
                logits = process.log_kernel(squared, sigma, self.dim)
                if request.reference is not None:
                    m = slope(process, squared, sigma, self.dim)
            m0 = None if request.reference is None else request.reference.unsqueeze(1)
            softmax.update(logits, part, request.multipliers(along, 2 * self.half[i:j], m, m0))
        log_sum = softmax.log_sum
        if process.gaussian:
            log_sum = log_sum - constant.squeeze(1) * request.sigma**-2
        return Averages(log_sum, softmax.vector_averages, softmax.scalar_averages)

    # -- shortlist ----------------------------------------------------------------------------------------------------

    def _shortlist(self, request: Request, process: Process, norms: Tensor) -> tuple[Averages, Tensor]:
        """The averages by certified candidates, and which rows (R,) had few enough of them."""
        rows, device, dim = request.x.shape[0], self.data.device, self.dim
        limit = min(1024, max(64, self.count // 64))
        x = request.x - self.centre
        sigma = request.sigma.unsqueeze(1)
        exact, centre = x.double(), self.centre.double()
        constant = (exact.square().sum(1) / 2 + exact @ centre + self.shift).unsqueeze(1)
        unit = unit_roundoff()
        error = unit * ((math.sqrt(dim) + 4) * norms * self.largest + 4 * (self.largest_half + norms * centre.norm()))
        error = error.unsqueeze(1)
        margin = math.log(self.count / DISCARD)
        best = torch.full((rows, 1), -torch.inf, dtype=torch.float64, device=device)
        active = torch.ones(rows, 1, dtype=torch.bool, device=device)
        found = torch.zeros(rows, dtype=torch.int64, device=device)
        where: list[tuple[Tensor, Tensor, Tensor]] = []

        def bound(best: Tensor) -> Tensor:
            """The smallest x·y + bias that a point of weight above ε/N can show."""
            if process.gaussian:
                return best - margin * sigma**2 - 2 * error
            return best

        for i, part in self.blocks(False):
            j = i + part.shape[0]
            logits = torch.addmm(self.bias[i:j], x, part.T)
            allowed = active
            visible = self._visible(request, i, j)
            if visible is not None:
                allowed = active & visible
                logits.masked_fill_(~allowed, -torch.inf)
            if process.gaussian:
                best = torch.maximum(best, logits.amax(1, keepdim=True).double())
                level = bound(best)
                mask = (logits >= level.to(logits.dtype)) & allowed
            else:
                half = constant - logits
                low = process.log_kernel((2 * (half + error)).clamp(min=0), sigma, dim).amax(1, keepdim=True)
                best = torch.maximum(best, low)
                optimistic = process.log_kernel((2 * (half - error)).clamp(min=0), sigma, dim)
                mask = (optimistic >= best - margin) & allowed
                logits = optimistic
            row, column = torch.nonzero(mask, as_tuple=True)
            where.append((row, column + i, logits[row, column].double()))
            found += torch.bincount(row, minlength=rows)
            active &= (found <= 8 * limit).unsqueeze(1)
        row, column, logit = (torch.cat(part) for part in zip(*where, strict=True))
        final = bound(best) if process.gaussian else best - margin
        keep = (logit >= final[row, 0] - 1e-6 * final[row, 0].abs()) & active[row, 0]
        row, column = row[keep], column[keep]
        done = active.squeeze(1) & (torch.bincount(row, minlength=rows) <= limit)
        keep = done[row]
        return self._pairs(request, process, row[keep], column[keep]), done

    def _pairs(self, request: Request, process: Process, row: Tensor, column: Tensor) -> Averages:
        """Averages over listed (row, point) pairs by differences in float64."""
        result, dim = self._empty(request), self.dim
        step = max(16, (1 << 21) // dim)
        squared = torch.empty(row.shape[0], dtype=torch.float64, device=row.device)
        for i in range(0, row.shape[0], step):
            part = slice(i, i + step)
            gap = request.x[row[part]].double() - self.data[column[part]].double()
            squared[part] = gap.square_().sum(1)
        sigma = request.sigma[row]
        logits = process.log_kernel(squared, sigma, dim)
        top = torch.full_like(result.log_sum, -torch.inf).scatter_reduce_(0, row, logits, "amax")
        weights = torch.exp(logits - top[row])
        total = torch.zeros_like(top).index_add_(0, row, weights)
        result.log_sum = top + total.log()
        if not request.tilts:
            return result
        weights /= total[row]
        keep = weights > DISCARD / self.count
        row, column, weights, squared, sigma = row[keep], column[keep], weights[keep], squared[keep], sigma[keep]
        m = None if process.gaussian else slope(process, squared, sigma, dim)
        centre = self.centre.double()
        for i in range(0, row.shape[0], step):
            part = slice(i, i + step)
            points, own = self.data[column[part]].double(), row[part]
            along = None if request.v is None else ((points - centre) * request.v[own].double()).sum(1)
            own_m = None if m is None else m[part]
            m0 = None if request.reference is None else request.reference[own]
            for k, t in enumerate(request.multipliers(along, 2 * self.half[column[part]], own_m, m0)):
                w = weights[part] if t is None else weights[part] * t
                result.scalars[k].index_add_(0, own, w)
                if k < request.vectors:
                    result.vectors[k].index_add_(0, own, w.unsqueeze(1) * points)
        return result
