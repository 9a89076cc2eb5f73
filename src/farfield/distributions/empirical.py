"""The training set as a law: a mixture of point masses, whose denoiser is the optimum of the training loss.

    w = softmax_i log k(‖x − y_i‖; σ),   D = Σ_i w_i y_i,   log p = log Σ_i k_i − log N + log-normaliser

For Gaussian diffusion ``∂D/∂x = Cov_w(y)/σ²``; for any isotropic kernel with slope ``m_i = −2 ∂log k_i/∂d²``,
``∂D/∂x v = Σ w_i y_i (t_i − t̄)`` with ``t_i = m_i (y_i − x)·v``, and ``∇ log p = Σ w_i m_i (y_i − x)``.
How the averages are computed, and how their accuracy is kept from σ = 1e-3 to 1e3, is told in
:mod:`farfield.distributions.posterior`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.base import Distribution, level
from farfield.distributions.curvature import DISCARD, check_count, weighted_points
from farfield.distributions.empirical_derivatives import log_density, posterior_mean
from farfield.distributions.mixture_pruning import Pruned
from farfield.distributions.posterior import Averages, Points, Request, Tilt
from farfield.errors import ArgumentError
from farfield.processes import Diffusion, Process

#: Rows of a batch treated together; bounds the logits of a block.
_ROWS = 1024


class Empirical(Distribution):
    """The law of a finite data set, under any isotropic process.

    Args:
        data: (N, *event), floating point; a tensor or an array, which may be memory-mapped. It is never copied; it is
            read once here, in blocks, for its norms, and again after a move to another device or type.
        process: Gaussian diffusion by default; any isotropic process gives the exact field of its kernel.
        labels: (N,) integer classes, to which ``forward(x, sigma, labels=…)`` can restrict the average.
        block: how many points are visited at a time; memory is O(B (d + block)).

    Raises:
        ArgumentError: if the shapes disagree or the data are not floating point.
        DataError: if the data hold values that are not finite.
    """

    data: Tensor

    def __init__(
        self,
        data: Tensor | np.ndarray,
        process: Process | None = None,
        labels: Tensor | np.ndarray | None = None,
        block: int = 4096,
    ) -> None:
        if isinstance(data, np.ndarray):
            with warnings.catch_warnings():
                # A read-only map makes torch warn about writing; nothing here writes.
                warnings.simplefilter("ignore")
                data = torch.from_numpy(data)
        data = data.detach()
        if data.ndim < 2 or data.shape[0] == 0:
            raise ArgumentError(f"data has shape {tuple(data.shape)}; expected (N, *event) with N >= 1")
        if data.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"data has type {data.dtype}; expected float32 or float64")
        if block < 1:
            raise ArgumentError(f"block = {block}; expected at least 1")
        super().__init__(tuple(data.shape[1:]), process=process if process is not None else Diffusion())
        ids = None if labels is None else torch.as_tensor(labels).to(data.device)
        if ids is not None and ids.shape != (data.shape[0],):
            raise ArgumentError(f"labels has shape {tuple(ids.shape)}; expected ({data.shape[0]},)")
        self.block = int(block)
        self.register_buffer("data", data, persistent=False)
        self.register_buffer("labels", ids, persistent=False)
        self._points: Points | None = None
        self._classes: dict[int, int] = {}
        if ids is not None:
            values, counts = torch.unique(ids, return_counts=True)
            self._classes = dict(zip(values.tolist(), counts.tolist(), strict=True))
        # Measured now, so that data that are not finite are refused here and not at the first use.
        self._points = Points(self.data.reshape(self.count, -1), ids, self.block)

    @property
    def count(self) -> int:
        """N, the number of points."""
        return self.data.shape[0]

    @property
    def points(self) -> Points:
        """The points with their cached norms."""
        if self._points is None:
            labels = self._buffers["labels"]
            self._points = Points(self.data.reshape(self.count, -1), labels, self.block)
        return self._points

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Empirical:
        super()._apply(fn, recurse)
        self._points = None
        return self

    # -- the averages -------------------------------------------------------------------------------------------------

    def _average(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None,
        tilts: tuple[Tilt, ...] = ("1",),
        vectors: int = 1,
        v: Tensor | None = None,
    ) -> Averages:
        self.check_shape(x)
        rows = x.shape[0]
        levels = self._levels(sigma, x)
        ids = None if labels is None else torch.as_tensor(labels, device=x.device).expand(rows)
        if ids is not None:
            self._count_of(ids)
        direction = None if v is None else v.detach().flatten(1)
        request = Request(x.detach().flatten(1), levels, tilts, vectors, ids, direction)
        if not self.process.gaussian and set(tilts) - {"1"}:
            request.reference = self.points.reference(request.x, levels, self.process)
        if rows <= _ROWS:
            return self.points.average(request, self.process)
        index = torch.arange(rows, device=x.device)
        parts = [self.points.average(request.rows(chunk), self.process) for chunk in index.split(_ROWS)]
        return Averages(
            torch.cat([p.log_sum for p in parts]),
            torch.cat([p.vectors for p in parts], 1),
            torch.cat([p.scalars for p in parts], 1),
        )

    @staticmethod
    def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
        """σ as (B,) float64, positive where that can be known without waiting for a device."""
        if not isinstance(sigma, Tensor):
            if not sigma > 0:
                raise ArgumentError(f"sigma = {sigma}; expected a positive number: point masses have no density")
            return torch.full((x.shape[0],), float(sigma), dtype=torch.float64, device=x.device)
        s = level(sigma.detach(), x.device, x.shape[0])
        assert isinstance(s, Tensor)
        return s.reshape(-1).expand(x.shape[0])

    def _count_of(self, labels: Tensor | None) -> list[int] | int:
        """The number of points in each row's class."""
        if labels is None:
            return self.count
        if not self._classes:
            raise ArgumentError("labels were given, but this data set was made without labels")
        try:
            return [self._classes[k] for k in labels.tolist()]
        except KeyError as error:
            raise ArgumentError(f"label {error.args[0]} does not occur in the data") from None

    # -- the law ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None, **condition: Any) -> Tensor:
        """``Σ_i w_i y_i``, shape and type of ``x``; differentiable once in ``x`` and, under diffusion, in ``sigma``.

        Args:
            x: (B, *event).
            sigma: a positive number, () or (B,).
            labels: (B,) or () classes to which the average is restricted.

        Raises:
            ArgumentError: in a derivative by ``sigma`` under another process than diffusion, where it is not known.
        """
        return posterior_mean(self, x, sigma, labels)

    def log_prob(
        self, x: Tensor, sigma: float | Tensor = 0.0, labels: Tensor | None = None, **condition: Any
    ) -> Tensor:
        """``log (1/N) Σ_i p(x | y_i, σ)``, (B,) in float64; differentiable once in ``x``.

        Raises:
            ArgumentError: at σ = 0, where point masses have no density.
        """
        return log_density(self, x, sigma, labels)

    def jvp(
        self, x: Tensor, sigma: float | Tensor, v: Tensor, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x) v``, for diffusion ``Cov_w(y) v / σ²``; one pass over the data."""
        if self.process.gaussian:
            averages = self._average(x, sigma, labels, ("1", "b"), 2, v)
            mean, tilted = averages.vectors.double()
            product = (tilted - averages.scalars[1].unsqueeze(1) * mean) * self._levels(sigma, x).unsqueeze(1) ** -2
        else:
            averages = self._average(x, sigma, labels, ("1", "m", "mb"), 3, v)
            mean, steep, tilted = averages.vectors.double()
            _, slope, along = averages.scalars.unsqueeze(-1)
            # t = m (b − x·v), with x centred as b is; the constant part of m leaves x·v without effect.
            offset = ((x.flatten(1).double() - self.points.centre) * v.flatten(1)).sum(1, keepdim=True)
            product = (tilted - along * mean) - offset * (steep - slope * mean)
        return mean.to(x.dtype).view(x.shape), product.to(x.dtype).view(x.shape)

    def vjp(
        self, x: Tensor, sigma: float | Tensor, v: Tensor, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x)ᵀ v``; equal to :meth:`jvp` for diffusion, not for other kernels."""
        if self.process.gaussian:
            return self.jvp(x, sigma, v, labels)
        averages = self._average(x, sigma, labels, ("1", "m", "mb", "db"), 3, v)
        mean, steep, tilted = averages.vectors.double()
        _, slope, along, change = averages.scalars.unsqueeze(-1)
        # Jᵀ v = Σ w m (y − x)(b − b̄), split at D: y − x = (y − D) + (D − x).
        level = ((mean - self.points.centre) * v.flatten(1)).sum(1, keepdim=True)
        product = (tilted - along * mean) - level * (steep - slope * mean)
        product = product + (mean - x.flatten(1)) * (change - level * slope)
        return mean.to(x.dtype).view(x.shape), product.to(x.dtype).view(x.shape)

    def trace(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None, **condition: Any) -> Tensor:
        """``tr ∂D/∂x = (Σ w ‖y‖² − ‖D‖²)/σ²``, (B,) in float64; for other kernels one product a coordinate."""
        if not self.process.gaussian:
            return super().trace(x, sigma, labels=labels)
        averages = self._average(x, sigma, labels, ("1", "h"), 1)
        spread = averages.scalars[1] - (averages.vectors[0].double() - self.points.centre.double()).square().sum(1)
        return spread.clamp(min=0) / self._levels(sigma, x) ** 2

    def posterior_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """The leading eigenpairs of the weighted covariance of the points, under any process.

        As :meth:`Distribution.posterior_spectrum`; a thin factor of the points that carry weight.
        """
        check_count(count, self.dim)
        weights = self.weights(x, sigma, labels)
        values, vectors = [], []
        for row in weights:
            index = torch.nonzero(row > DISCARD).squeeze(1)
            own = row[index] / row[index].sum()
            top, directions = weighted_points(self.points.data[index].double(), own, count)
            values.append(top)
            vectors.append(directions)
        shape = (x.shape[0], count, *self.event_shape)
        return torch.stack(values), torch.stack(vectors).to(x.dtype).view(shape)

    def hessian_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Distribution.hessian_spectrum`.

        Raises:
            ArgumentError: for another process than diffusion, where ``∇² log p`` is not made of the posterior covariance.
        """
        if not self.process.gaussian:
            raise ArgumentError(f"hessian_spectrum is known for diffusion, not for {self.process!r}")
        return super().hessian_spectrum(x, sigma, count, labels=labels)

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` points drawn with replacement, perturbed by the process when σ > 0: (n, *event)."""
        device = generator.device if generator is not None else self.data.device
        index = torch.randint(self.count, (n,), generator=generator, device=device).to(self.data.device)
        points = self.data[index]
        return self.process.perturb(points.to(device), sigma, generator).to(self.data.device) if sigma > 0 else points

    # -- the points ---------------------------------------------------------------------------------------------------

    def nearest(self, x: Tensor, k: int = 1, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k nearest points: squared distances (B, k) in float64, ascending, and their numbers (B, k).

        Candidates come from a matrix product; their distances are then taken by differences in float64.
        """
        self.check_shape(x)
        if not 1 <= k <= self.count:
            raise ArgumentError(f"k = {k}; expected 1 to the number of points, {self.count}")
        flat, points = x.detach().flatten(1), self.points
        wide = points.dim <= 32 or flat.dtype == torch.float64
        dtype = torch.float64 if wide else points.data.dtype
        queries = (flat - points.centre).to(dtype)
        bias = points.shift - points.half if wide else points.bias
        pool = min(self.count, k if wide else k + 16)
        best = torch.full((x.shape[0], 0), -torch.inf, dtype=dtype, device=x.device)
        index = torch.zeros(x.shape[0], 0, dtype=torch.int64, device=x.device)
        for i, part in points.blocks(wide):
            j = i + part.shape[0]
            value = torch.addmm(bias[i:j].to(dtype), queries, part.to(dtype).T)
            if labels is not None and points.labels is not None:
                value.masked_fill_(points.labels[i:j] != torch.as_tensor(labels).reshape(-1, 1), -torch.inf)
            value, place = value.topk(min(pool, j - i), dim=1)
            best, index = torch.cat((best, value), 1), torch.cat((index, place + i), 1)
            best, order = best.topk(min(pool, best.shape[1]), dim=1)
            index = index.gather(1, order)
        gaps = [flat.double() - points.data[index[:, c]].double() for c in range(pool)]
        squared = torch.stack([gap.square_().sum(1) for gap in gaps], 1)
        squared, order = squared.topk(k, dim=1, largest=False, sorted=True)
        return squared, index.gather(1, order)

    def weights(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """The posterior weights of all points, (B, N) in float64, by differences: for small sets and few states."""
        self.check_shape(x)
        flat, points = x.detach().flatten(1).double(), self.points
        squared = torch.cat([torch.cdist(flat, part, compute_mode="donot_use_mm_for_euclid_dist").square()
                             for _, part in points.blocks(True)], 1)  # fmt: skip
        logits = self.process.log_kernel(squared, self._levels(sigma, x).unsqueeze(1), self.dim)
        if labels is not None:
            ids = torch.as_tensor(labels, device=x.device).expand(x.shape[0])
            self._count_of(ids)
            assert points.labels is not None
            logits = logits.masked_fill(points.labels != ids.unsqueeze(1), -torch.inf)
        return logits.softmax(1)

    def prune(self, x: Tensor, sigma: float | Tensor, eps: float = 1e-9, labels: Tensor | None = None) -> Pruned:
        """Which points can matter: those within ``2σ² ln(N/ε)`` of the smallest squared distance, and what the others weigh.

        For other kernels the points of more than ε/N times the largest weight. Arguments as for :meth:`weights`.
        """
        if not 0 < eps < 1:
            raise ArgumentError(f"eps = {eps}; expected a number between 0 and 1")
        w = self.weights(x, sigma, labels)
        kept = w >= w.amax(1, keepdim=True) * (eps / self.count)
        return Pruned(kept, torch.where(kept, 0.0, w).sum(1))
