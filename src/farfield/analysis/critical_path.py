"""The central state of the frozen reverse dynamics, from high noise down, and the spectrum of ∂D/∂x on it.

Far from the data there is one fixed point, near the mean m of the law. Two ways to go on from there:

- *mean*: the centre is ``o + (m − o)/κ(σ)``, where the mean would put the fixed point. A law that is symmetric about its
  mean, such as normalised data, leaves it a fixed point through every instability. Of any other law it is a definition,
  and the push of the dynamics along the direction that becomes unstable is reported beside it.
- *fixed*: the fixed point itself, held at the coordinates of the mean only along the directions that are unstable or under
  examination ("on the symmetric branch"): exact also for laws that are symmetric along those alone. A law with several soft
  directions and no symmetry slips to one side of them before any instability: an imperfect pitchfork.

With noise, everything is averaged over states ``x + σ z`` about the mean's centre, the draws z free of components along the
directions under examination: the field along those as a sample meets it that is still undecided about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.critical_field import AveragedField, Dynamics, critical_ratio
from farfield.analysis.fixed_points import FixedPointMap, anderson
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution
from farfield.numerics.krylov import leading_eigenpairs, random_start
from farfield.processes import TimeMap

#: How the centre is chosen.
Centre = Literal["mean", "fixed"]

#: Ritz vectors that are looked at beyond the wanted ones.
_GUARDS = 3


@dataclass(frozen=True, eq=False)
class Level:
    """The centre at one noise level.

    Attributes:
        sigma, kappa: the level and its critical eigenvalue.
        x: (1, *event), the variance-exploding state.
        values, vectors, errors: (p,), (p, *event), (p,): leading eigenvalues of ∂D/∂x, their vectors and errors; those of the
            directions examined, and a few rough ones beyond.
        sure: how many of them were examined.
        push: (p,) components of ``(D − o)/κ − (x − o)`` along the vectors.
        rest: length of what remains of it beyond the directions examined, which an iteration should have brought to 0.
    """

    sigma: float
    kappa: float
    x: Tensor
    values: Tensor
    vectors: Tensor
    errors: Tensor
    sure: int
    push: Tensor
    rest: float

    def excess(self, k: int) -> float:
        """``log(μ_k/κ)``: positive where direction k is unstable."""
        value = float(self.values[k])
        return math.log(value / self.kappa) if value > 0 else -math.inf


class CentralPath:
    """The centre at any noise level.

    Args:
        denoiser, process, dynamics: as for :func:`farfield.analysis.critical_times.critical_times`.
        origin: (*event), the point towards which the process contracts.
        noise: (n, *event) draws, or None.
        centre: ``"mean"`` or ``"fixed"``.
        top: the highest noise level.
        tolerance: relative accuracy in σ that is aimed at.
        steps: of the eigenvalue solver, for each level.
        symmetric: symmetrise its products.
        seed: of its start.
        batch_size: states evaluated at once.

    Attributes:
        evaluations, products: so far, counted for each state.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: TimeMap,
        dynamics: Dynamics,
        origin: Tensor,
        noise: Tensor | None,
        centre: Centre,
        top: float,
        tolerance: float,
        steps: int,
        symmetric: bool,
        seed: int,
        batch_size: int,
    ) -> None:
        self.denoiser, self.process, self.dynamics = denoiser, process, dynamics
        self.origin, self.noise, self.how, self.top = origin.unsqueeze(0), noise, centre, top
        self.tolerance, self.steps, self.symmetric = tolerance, steps, symmetric
        self.seed, self.batch_size = seed, batch_size
        # A quarter of the draws, in pairs, will do for a coarse look.
        self.few = slice(0, max(2, 0 if noise is None else len(noise) // 8 * 2))
        self.evaluations = self.products = 0
        field = AveragedField(denoiser, top, noise, batch_size=batch_size)
        self.mean = field(self.origin)
        self.evaluations += field.evaluations

    def reference(self, kappa: float) -> Tensor:
        """``o + (m − o)/κ``, (1, *event)."""
        return self.origin + (self.mean - self.origin) / kappa

    def map_at(self, sigma: float, free: Tensor, draws: slice | None = None) -> FixedPointMap:
        """The map at a level, its noise orthogonal to the vectors ``free`` (k, *event); ``draws`` takes some of it."""
        z = self.noise if self.noise is None or draws is None else self.noise[draws]
        if z is not None and len(free):
            z = z - project(z, free)
        field = AveragedField(self.denoiser, sigma, z, self.symmetric, self.batch_size)
        return FixedPointMap(field, critical_ratio(self.process, sigma, self.dynamics), self.origin)

    def count(self, step: FixedPointMap) -> None:
        """Add up what a map has cost."""
        self.evaluations += step.field.evaluations
        self.products += step.field.products

    def centre(self, step: FixedPointMap, held: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
        """The centre at the level of a map, and the length of the step that an iteration has left.

        Args:
            step: the map.
            held: (h, *event), the directions in which a fixed point is held at the mean.
            near: the centre at a neighbouring level.
        """
        if self.how == "mean":
            return self.reference(step.kappa), 0.0
        return self.fixed_point(step, held, near)

    def fixed_point(self, step: FixedPointMap, held: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
        """The fixed point near a state, whichever way the centre is chosen; arguments and result of :meth:`centre`."""
        start = self.reference(step.kappa)
        if near is not None:
            offset = near - start
            start = start + offset - project(offset, held)

        def free(x: Tensor) -> Tensor:
            move = step(x) - x
            return x + move - project(move, held)

        scale = float(self.mean.norm()) + step.field.sigma
        found = anderson(free, start, tolerance=max(0.01 * self.tolerance, 1e-13) * scale, steps=100)
        return found.x, float(found.residuals[0])

    def level(
        self, sigma: float, order: int, near: Level | None, *, width: int = 0, coarse: bool = False, least: int = 1
    ) -> Level:
        """The centre and its spectrum for the examination of direction ``order``.

        Args:
            sigma: the level.
            order: number of the direction, from 0; all up to it are held and free of noise.
            near: a neighbouring level to start from.
            width: how many eigenvalues to compute; ``order + 1`` by default.
            coarse: a few draws of the noise and a rough eigenvalue will do.
            least: steps of the eigenvalue solver at least.
        """
        width = max(width, order + 1)
        examined = self.origin[:0] if near is None else near.vectors[: order + 1]
        step = self.map_at(sigma, examined, self.few if coarse else None)
        x, rest = self.centre(step, examined, None if near is None else near.x)
        start = self._start(width, near).to(x)
        found = leading_eigenpairs(
            step.field.spectral_product(x),
            start.unsqueeze(0),
            steps=self.steps,
            tolerance=max(0.1 * math.sqrt(self.tolerance), 1e-9),
            settled=0.03 if coarse else 0.3 * self.tolerance,
            least=min(least, self.steps),
            guards=_GUARDS,
            seed=self.seed,
        )
        values, vectors = found.values[0], found.vectors[0]
        if near is not None:
            vectors = _aligned(values, vectors, near.vectors)
        move = (step(x) - x).flatten(1).double()[0]
        flat = vectors.flatten(1).double()
        self.count(step)
        return Level(
            sigma=sigma,
            kappa=step.kappa,
            x=x,
            values=values.cpu(),
            vectors=vectors,
            errors=found.errors[0].cpu(),
            sure=width,
            push=(flat @ move).cpu(),
            rest=rest,
        )

    def _start(self, width: int, near: Level | None) -> Tensor:
        """Vectors (width, *event) to start the eigenvalue solver from: those of the neighbour, and random ones."""
        known = self.origin[:0] if near is None else near.vectors[:width]
        if len(known) == width:
            return known
        fresh = random_start((1, width, *self.denoiser.event_shape), self.seed, self.origin.dtype, self.origin.device)[
            0
        ]
        return torch.cat((known, fresh[len(known) :]))

    def scatter(self, level: Level, order: int) -> tuple[Tensor, float, float]:
        """How a direction's ``vᵀ J v`` depends on the draws of the noise.

        Returns:
            Its value at each draw, (n,) or (1,); how much less the eigenvector of one half of the draws has on the other half,
            0 for fewer than four; and ``‖(J − Jᵀ) v‖/2`` of the average.
        """
        examined = level.vectors[: order + 1]
        step = self.map_at(level.sigma, examined)
        v = level.vectors[order : order + 1].unsqueeze(0)
        forward = step.field.products_at(level.x, v)[0, :, 0].double()
        skew = 0.0
        if not isinstance(self.denoiser, Distribution):
            backward = step.field.products_at(level.x, v, transposed=True)[0, :, 0].double()
            skew = float((forward - backward).mean(0).norm()) / 2
            forward = (forward + backward) / 2
        values = (forward * v[0, 0].double()).flatten(1).sum(1).cpu()
        self.count(step)
        count = len(values)
        if count < 4:
            return values, 0.0, skew
        half = count // 4 * 2
        parts = (slice(0, half), slice(half, count))
        crossed = 0.0
        for own, other in (parts, parts[::-1]):
            fitted, judge = self.map_at(level.sigma, examined, own), self.map_at(level.sigma, examined, other)
            block = level.vectors[: order + 1].unsqueeze(0)
            product = fitted.field.spectral_product(level.x)
            u = leading_eigenpairs(product, block, steps=2, tolerance=0.0).vectors[:, order:]
            moved = judge.field.products_at(level.x, u, judge.field.transposed)[0, :, 0].double().mean(0)
            crossed += float((moved * u[0, 0].double()).sum()) / 2
            self.count(fitted)
            self.count(judge)
        return values, max(float(values.mean()) - crossed, 0.0), skew


def project(x: Tensor, vectors: Tensor) -> Tensor:
    """The part of states (B, *event) in the span of orthonormal vectors (k, *event)."""
    if len(vectors) == 0:
        return torch.zeros_like(x)
    flat = vectors.flatten(1).to(x)
    return (x.flatten(1) @ flat.T @ flat).view(x.shape)


def _aligned(values: Tensor, vectors: Tensor, like: Tensor) -> Tensor:
    """Eigenvectors (p, *event), those of equal eigenvalues turned so that they continue given ones (q, *event)."""
    result, known, k = vectors.clone(), values.tolist(), 0
    while k < len(known):
        end = k + 1
        while end < len(known) and abs(known[end] - known[k]) <= 1e-6 * abs(known[k]):
            end += 1
        if end - k > 1 and k < len(like):
            own, other = vectors[k:end].flatten(1).double(), like[k:end].flatten(1).double()
            u, _, w = torch.linalg.svd(other @ own.T)
            turn = torch.cat((u @ w[: len(other)], w[len(other) :]))
            result[k:end] = (turn @ own).to(vectors).view(vectors[k:end].shape)
        k = end
    return result
