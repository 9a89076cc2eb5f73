"""Extreme eigenpairs of symmetric operators that are only known by their products, and linear systems with them.

Block Lanczos with full reorthogonalisation (Golub & Underwood 1977; Parlett 1998, chapter 13): the products of a block of
vectors span a Krylov space V; the operator's projection ``H = Vᵀ A V`` gives Ritz values θ and vectors ``V y``. All
products are kept, so the residual ``‖A V y − θ V y‖`` costs none; it bounds the distance of θ to an eigenvalue, and
``residual²/gap`` bounds it more closely where the next Ritz value lies a gap away (Parlett 1998, section 10.5; Kato 1949).

Everything runs for a batch of B operators at once: a product takes and returns (B, p, *event), p vectors for each operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams

#: ``product(v)`` multiplies p vectors by each of B operators: (B, p, *event) to (B, p, *event).
Product = Callable[[Tensor], Tensor]

#: A vector that keeps less than this share of its length through orthogonalisation lies in the space already.
_DEPENDENT = 1e-5


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenpairs of B operators, the wanted ones first.

    Attributes:
        values: (B, k) in float64.
        vectors: (B, k, *event), orthonormal, in the type of the start, the largest component positive.
        residuals: ``‖A v − λ v‖``, (B, k) in float64.
        errors: estimates of ``|λ − exact|``, (B, k): ``residual²/gap`` where the gap to the other Ritz values is larger than
            the residual, else the residual.
        ritz: all Ritz values (B, m), the wanted end first.
        products: vectors that each operator was multiplied with.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    ritz: Tensor
    products: int


def random_start(
    shape: tuple[int, ...],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    purpose: str = "krylov start",
) -> Tensor:
    """Standard normal vectors (B, p, *event) to start from, named by a seed: the same for every device.

    Args:
        shape: (B, p, *event).
        seed, purpose: name the stream.
        dtype: floating type of the result.
        device: where to put it.
    """
    batch, rest = shape[0], shape[1:]
    return streams.normal(seed, range(batch), rest, purpose=purpose, dtype=dtype).to(device)


def leading_eigenpairs(
    product: Product,
    start: Tensor,
    count: int | None = None,
    *,
    steps: int = 50,
    tolerance: float = 1e-8,
    settled: float = 0.0,
    least: int = 1,
    guards: int = 0,
    largest: bool = True,
    seed: int = 0,
) -> Eigenpairs:
    """The leading eigenpairs of symmetric operators given by their products.

    An eigenvalue of multiplicity m is found m times where the start has at least m vectors. For a start that is close to the
    eigenvectors, such as those of a neighbouring problem, one or two steps suffice; since a start that *is* an eigenvector
    says nothing about larger ones, ``least`` asks for steps beyond it, into directions drawn from the seed.

    An operator A that is only nearly symmetric is treated as ``(A + Aᵀ)/2``: its projection is symmetrised, and the residual
    counts its antisymmetric part. A product that symmetrises, ``(A v + Aᵀ v)/2``, removes that at twice the cost.

    Args:
        product: see :data:`Product`; called once a step.
        start: (B, p, *event), p ≥ 1 vectors for each operator, linearly independent or not; their type and device are used.
        count: k, how many pairs; p by default.
        steps: at most so many products of blocks.
        tolerance: stop once every wanted residual is below ``tolerance`` times the largest Ritz value in magnitude.
        settled: stop as well once no wanted value has changed by more than this fraction of the largest in a step; for
            operators that are not quite symmetric, whose residuals do not vanish.
        least: at least so many steps.
        guards: so many pairs more are returned, as far as the space has them and as good as they are by then.
        largest: the largest eigenvalues, or the smallest.
        seed: of the vectors that replace dependent ones.

    Raises:
        ArgumentError: for a start of the wrong shape, or a count, a number of steps or a tolerance out of range.
    """
    if start.ndim < 3 or start.shape[0] == 0 or start.shape[1] == 0 or not start.is_floating_point():
        raise ArgumentError(
            f"start has shape {tuple(start.shape)} and type {start.dtype}; expected floats (B, p, *event)"
        )
    event, width = start.shape[2:], start.shape[1]
    dim = math.prod(event)
    wanted = width if count is None else count
    if not 1 <= wanted <= dim:
        raise ArgumentError(f"count = {wanted}; expected 1 to the {dim} coordinates")
    if steps < 1 or not 1 <= least <= steps or not tolerance >= 0:
        raise ArgumentError(
            f"steps = {steps}, least = {least}, tolerance = {tolerance}; expected 1 <= least <= steps, tolerance >= 0"
        )
    space = _Space(start.flatten(2), seed)
    steps = max(steps, math.ceil(wanted / width))
    products, done = 0, 0
    before: Tensor | None = None
    while True:
        block = space.block
        products += block.shape[1]
        image = product(block.view(*block.shape[:2], *event)).detach().flatten(2)
        space.take(image)
        done += 1
        theta, y = space.ritz(largest)
        complete = space.size >= dim
        if space.size >= wanted:
            residuals = space.residuals(theta[:, :wanted], y[:, :, :wanted])
            scale = theta.abs().amax(1, keepdim=True)
            small = residuals <= tolerance * scale
            if settled > 0 and before is not None:
                small = small | ((theta[:, :wanted] - before).abs() <= settled * scale)
            if complete or done >= steps or (done >= least and bool(small.all())):
                break
            before = theta[:, :wanted]
        space.extend(image)
    if guards:
        wanted = min(wanted + guards, space.size)
        residuals = space.residuals(theta[:, :wanted], y[:, :, :wanted])
    vectors = torch.nn.functional.normalize(space.combine(y[:, :, :wanted]), dim=2)
    largest_place = vectors.abs().argmax(2, keepdim=True)
    vectors = vectors * torch.sign(vectors.gather(2, largest_place))
    return Eigenpairs(
        values=theta[:, :wanted],
        vectors=vectors.view(start.shape[0], wanted, *event),
        residuals=residuals,
        errors=_errors(theta, residuals),
        ritz=theta,
        products=products,
    )


def _errors(theta: Tensor, residuals: Tensor) -> Tensor:
    count = residuals.shape[1]
    apart = (theta[:, :count].unsqueeze(2) - theta.unsqueeze(1)).abs()
    own = torch.eye(count, theta.shape[1], dtype=torch.bool, device=theta.device)
    gap = apart.masked_fill(own, torch.inf).amin(2)
    return torch.where(gap > residuals, residuals.square() / gap, residuals)


class _Space:
    """An orthonormal basis V (B, m, d) with its products A V, and the projection H = V A Vᵀ in float64."""

    def __init__(self, start: Tensor, seed: int) -> None:
        self.seed, self.fresh = seed, 0
        self.batch, _, self.dim = start.shape
        self.basis = start.new_zeros(self.batch, 0, self.dim)
        self.images = self.basis
        self.projection = torch.zeros(self.batch, 0, 0, dtype=torch.float64, device=start.device)
        self.block = self._orthonormal(start)

    @property
    def size(self) -> int:
        """Vectors whose products are known."""
        return self.images.shape[1]

    def _orthonormal(self, vectors: Tensor) -> Tensor:
        """The part of vectors (B, p, d) outside the basis, orthonormal; dependent ones are replaced by random ones."""
        room = self.dim - self.basis.shape[1]
        columns: list[Tensor] = []
        for k in range(min(vectors.shape[1], room)):
            column = vectors[:, k]
            found = self._reduce(column, columns)
            for _ in range(3):
                lost = found.norm(dim=1) <= 0.5
                if not bool(lost.any()):
                    break
                self.fresh += 1
                purpose = f"krylov replacement {self.fresh}"
                other = streams.normal(self.seed, range(self.batch), (self.dim,), purpose=purpose, dtype=torch.float64)
                found = torch.where(lost.unsqueeze(1), self._reduce(other.to(column), columns), found)
            columns.append(found)
        return torch.stack(columns, 1)

    def _reduce(self, vector: Tensor, columns: list[Tensor]) -> Tensor:
        """One vector (B, d) made orthogonal to the basis and the columns, twice, and normalised; 0 where nothing is left."""
        others = torch.cat((self.basis, *(c.unsqueeze(1) for c in columns)), 1)
        length = vector.norm(dim=1, keepdim=True)
        rest = vector / torch.where(length > 0, length, 1.0)
        for _ in range(2):
            rest = rest - (others.transpose(1, 2) @ (others @ rest.unsqueeze(2))).squeeze(2)
        left = rest.norm(dim=1, keepdim=True)
        floor = _DEPENDENT if vector.dtype == torch.float32 else _DEPENDENT**2
        kept = torch.where(left > floor, rest / torch.where(left > 0, left, 1.0), 0.0)
        # What is left of a nearly dependent vector carries its rounding errors enlarged.
        again = kept - (others.transpose(1, 2) @ (others @ kept.unsqueeze(2))).squeeze(2)
        norm = again.norm(dim=1, keepdim=True)
        return torch.where(norm > 0.5, again / torch.where(norm > 0, norm, 1.0), 0.0)

    def take(self, image: Tensor) -> None:
        """Add the present block with its products."""
        new, old = self.block, self.basis
        across = (
            old.double() @ image.double().transpose(1, 2) + self.images.double() @ new.double().transpose(1, 2)
        ) / 2
        own = new.double() @ image.double().transpose(1, 2)
        top = torch.cat((self.projection, across), 2)
        bottom = torch.cat((across.transpose(1, 2), (own + own.transpose(1, 2)) / 2), 2)
        self.projection = torch.cat((top, bottom), 1)
        self.basis, self.images = torch.cat((old, new), 1), torch.cat((self.images, image), 1)

    def extend(self, image: Tensor) -> None:
        """The next block, from the newest products."""
        self.block = self._orthonormal(image.to(self.basis))

    def ritz(self, largest: bool) -> tuple[Tensor, Tensor]:
        """Ritz values (B, m), the wanted end first, and coefficients (B, m, m)."""
        theta, y = torch.linalg.eigh(self.projection)
        return (theta.flip(1), y.flip(2)) if largest else (theta, y)

    def combine(self, y: Tensor) -> Tensor:
        """``V y`` for coefficients (B, m, k): (B, k, d)."""
        return y.transpose(1, 2).to(self.basis) @ self.basis

    def residuals(self, theta: Tensor, y: Tensor) -> Tensor:
        """``‖A V y − θ V y‖``, (B, k) in float64."""
        gap = y.transpose(1, 2) @ self.images.double() - theta.unsqueeze(2) * (y.transpose(1, 2) @ self.basis.double())
        return gap.norm(dim=2)


@dataclass(frozen=True, eq=False)
class Solution:
    """``x`` (B, *event) with ``A x ≈ b``, ``residuals`` ``‖b − A x‖`` (B,) in float64, and the ``products`` it took."""

    x: Tensor
    residuals: Tensor
    products: int


def solve(product: Product, rhs: Tensor, *, steps: int = 50, tolerance: float = 1e-8, seed: int = 0) -> Solution:
    """Solve ``A x = b`` for B operators by the smallest residual in the Krylov space of b (GMRES; Saad & Schultz 1986).

    The operators need be neither symmetric nor definite.

    Args:
        product: see :data:`Product`, called with p = 1.
        rhs: b, (B, *event).
        steps: at most so many products, and no more than coordinates.
        tolerance: stop once every residual is below ``tolerance ‖b‖``.
        seed: of the vectors that continue a space which b does not fill.

    Raises:
        ArgumentError: for a right-hand side without coordinates, or a number of steps out of range.
    """
    if rhs.ndim < 2 or rhs.shape[0] == 0 or steps < 1:
        raise ArgumentError(f"rhs has shape {tuple(rhs.shape)}, steps = {steps}; expected (B, *event) and at least 1")
    event, b = rhs.shape[1:], rhs.flatten(1).double()
    norms = b.norm(dim=1)
    space, products = _Space(rhs.flatten(1).unsqueeze(1), seed), 0
    while True:
        products += 1
        image = product(space.block.view(rhs.shape[0], 1, *event)).detach().flatten(2)
        space.take(image)
        columns = space.images.double().transpose(1, 2)
        q, r = torch.linalg.qr(columns)
        # The triangle is singular where the operator is.
        y = torch.linalg.pinv(r, rtol=1e-13) @ (q.transpose(1, 2) @ b.unsqueeze(2))
        residuals = (b - (columns @ y).squeeze(2)).norm(dim=1)
        full = space.size >= min(steps, space.dim)
        if full or bool((residuals <= tolerance * norms).all()):
            break
        space.extend(image)
    x = space.combine(y).squeeze(1)
    return Solution(x.view(rhs.shape).to(rhs.dtype), residuals, products)
