"""Toy laws in closed form: points, spheres, curves, a checkerboard and small mixtures.

Each is a :class:`Distribution`: its sample, density, posterior mean and Jacobian belong together exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from farfield.data import toys as shapes
from farfield.distributions.base import Distribution, level
from farfield.distributions.bessel import bessel_ratio_over, bessel_ratio_slope, log_bessel
from farfield.distributions.mixture import GaussianMixture
from farfield.errors import ArgumentError, unknown_name


class Sphere(Distribution):
    """The uniform law on a sphere of given radius in D dimensions.

    With κ = r‖x‖/σ²: ``D = r A_D(κ) x/‖x‖`` with the Bessel ratio ``A_D = I_{D/2}/I_{D/2−1}`` (the mean resultant length
    of the von Mises-Fisher law; Mardia & Jupp 2000), ``tr ∂D/∂x = r² (1 − A²)/σ²``.

    Args:
        dim: D ≥ 2; 2 is the ring.
        radius: r > 0.
    """

    def __init__(self, dim: int = 3, radius: float = 1.0) -> None:
        if dim < 2 or not radius > 0:
            raise ArgumentError(f"dim = {dim}, radius = {radius}; expected dim >= 2 and radius > 0")
        super().__init__((dim,))
        self.radius = float(radius)
        self.register_buffer("_device", torch.zeros(()), persistent=False)

    def _state(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, float | Tensor, Tensor]:
        """x in float64, σ² as number or column, κ (B, 1)."""
        self.check_shape(x)
        s = level(sigma, x.device, x.shape[0])
        if not isinstance(s, Tensor) and not s > 0:
            raise ArgumentError(f"sigma = {sigma}; expected a positive number: a sphere has no density")
        wide = x.double()
        return wide, s * s, self.radius * torch.linalg.vector_norm(wide, dim=1, keepdim=True) / (s * s)

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``r A_D(κ) x/‖x‖``, 0 at the centre."""
        wide, s2, kappa = self._state(x, sigma)
        return (self.radius**2 / s2 * bessel_ratio_over(kappa, self.dim) * wide).to(x.dtype)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D`` and ``(r²/σ²) [A/κ (v − x̂ x̂·v) + A' x̂ x̂·v]``."""
        wide, s2, kappa = self._state(x, sigma)
        unit = torch.nn.functional.normalize(wide, dim=1, eps=1e-300)
        along = unit * (unit * v.double()).sum(1, keepdim=True)
        across, slope = bessel_ratio_over(kappa, self.dim), bessel_ratio_slope(kappa, self.dim)
        product = self.radius**2 / s2 * (across * (v.double() - along) + slope * along)
        return (self.radius**2 / s2 * across * wide).to(x.dtype), product.to(x.dtype)

    def trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``r² (1 − A²)/σ² = (r²/σ²) [A' + (D − 1) A/κ]``, (B,) in float64."""
        _, s2, kappa = self._state(x, sigma)
        # The second form: 1 − A² cancels to (D − 1)/κ at small σ.
        total = bessel_ratio_slope(kappa, self.dim) + (self.dim - 1) * bessel_ratio_over(kappa, self.dim)
        return (self.radius**2 / s2 * total).squeeze(1)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``−(D/2) log 2πσ² − (‖x‖ − r)²/2σ² + F_D(κ)``, (B,) in float64.

        Raises:
            ArgumentError: at σ = 0, where there is no density.
        """
        wide, s2, kappa = self._state(x, sigma)
        gap = torch.linalg.vector_norm(wide, dim=1, keepdim=True) - self.radius
        scale = s2.log() if isinstance(s2, Tensor) else math.log(s2)
        total = -gap * gap / (2 * s2) - self.dim / 2 * (math.log(2 * math.pi) + scale) + log_bessel(kappa, self.dim)
        return total.squeeze(1)

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws at noise level σ, (n, D)."""
        device = generator.device if generator is not None else self._buffers["_device"].device  # type: ignore[union-attr]
        z = torch.randn(2, n, self.dim, generator=generator, device=device)
        return self.radius * torch.nn.functional.normalize(z[0], dim=1) + sigma * z[1]


def _log_mills(a: Tensor) -> Tensor:
    """``log[(1 − Φ(a))/φ(a)]``, by the scaled complementary error function for a > 0."""
    right = torch.special.erfcx(a.clamp(min=0) / math.sqrt(2)).log() + 0.5 * math.log(math.pi / 2)
    other = a.clamp(max=0)
    left = torch.special.log_ndtr(-other) + 0.5 * other * other + 0.5 * math.log(2 * math.pi)
    return torch.where(a > 0, right, left)


class Checkerboard(Distribution):
    """The uniform law on eight unit squares of [−2, 2]², those whose corner (i, j) has i + j even.

    Each square is a product of two intervals, on which the posterior is a truncated normal law: with a = (i − x)/σ and
    b = a + 1/σ, its mass is ``Φ(b) − Φ(a)`` and its mean ``x + σ (φ(a) − φ(b))/(Φ(b) − Φ(a))``.
    """

    def __init__(self) -> None:
        super().__init__((2,))
        self.register_buffer("corners", torch.tensor(shapes.SQUARES, dtype=torch.float64), persistent=False)

    def _intervals(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """For each of the intervals [i, i+1] and each axis: log mass and mean, (B, 8, 2)."""
        self.check_shape(x)
        s = level(sigma, x.device, x.shape[0])
        s = s.reshape(-1, 1, 1) if isinstance(s, Tensor) else s
        if not isinstance(s, Tensor) and not s > 0:
            raise ArgumentError(f"sigma = {sigma}; expected a positive number")
        corners = self._buffers["corners"]
        assert corners is not None
        place = x.double().unsqueeze(1)
        a, b = (corners.double() - place) / s, (corners.double() + 1 - place) / s
        # Reflected so that the interval lies on the right: |a| <= |b|, and every difference below is safe in the tail.
        left = a + b < 0
        a, b = torch.where(left, -b, a), torch.where(left, -a, b)
        # The logarithm of Φ(b) − Φ(a) over φ(a): no squares of a or b are left to cancel.
        scaled = _log_mills(a)
        gap = -(b - a) * (a + b) / 2
        scaled = scaled + torch.log(-torch.expm1(gap + _log_mills(b) - scaled))
        shift = -s * torch.exp(-scaled) * torch.expm1(gap)
        mass = scaled - 0.5 * a * a - 0.5 * math.log(2 * math.pi)
        return mass, place + torch.where(left, -shift, shift)

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """The mean of the truncated normals, weighted by their masses."""
        mass, mean = self._intervals(x, sigma)
        weights = mass.sum(2).softmax(1)
        return (weights.unsqueeze(2) * mean).sum(1).to(x.dtype)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D`` and ``(∂D/∂x) v``, by one backward pass: the Jacobian is symmetric."""
        with torch.enable_grad():
            state = x.detach().requires_grad_(True)
            value = self(state, sigma)
            (product,) = torch.autograd.grad(value, state, v)
        return value.detach(), product

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``log (1/8) Σ mass``, (B,) in float64; at σ = 0 −log 8 inside and −∞ outside."""
        self.check_shape(x)
        if not isinstance(sigma, Tensor) and sigma == 0:
            corners = self._buffers["corners"]
            assert corners is not None
            gap = x.double().unsqueeze(1) - corners.double()
            inside = ((gap >= 0) & (gap <= 1)).all(2).any(1)
            return torch.where(inside, -math.log(8), -math.inf).double()
        return self._intervals(x, sigma)[0].sum(2).logsumexp(1) - math.log(8)

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws at noise level σ, (n, 2)."""
        corners = self._buffers["corners"]
        assert corners is not None
        device = generator.device if generator is not None else corners.device
        choice = torch.randint(8, (n,), generator=generator, device=device)
        points = corners.to(device)[choice].float() + torch.rand(n, 2, generator=generator, device=device)
        return points + sigma * torch.randn(n, 2, generator=generator, device=device)


def _mixture(make: Callable[..., shapes.Components]) -> Callable[..., GaussianMixture]:
    def build(**options: Any) -> GaussianMixture:
        parts = make(**options)
        count, dim = parts.means.shape
        empty = torch.zeros(count, dim, 0, dtype=torch.float64)
        return GaussianMixture(parts.weights, parts.means.float(), (empty, empty[:, 0], parts.variances))

    return build


def _ring(radius: float = 1.0) -> Sphere:
    return Sphere(2, radius)


#: The toy laws by name; each takes its own keyword options.
TOYS: dict[str, Callable[..., Distribution]] = {
    **{name: _mixture(make) for name, make in shapes.MIXTURES.items()},
    "sphere": Sphere,
    "ring": _ring,
    "checkerboard": Checkerboard,
}


def toy(name: str, **options: Any) -> Distribution:
    """A toy law by name: one of ``farfield.data.toys.TOY_NAMES``.

    Args:
        name: e.g. ``"eight_gaussians"``, ``"sphere"``, ``"swiss_roll"``.
        **options: what that toy takes, e.g. ``dim`` and ``radius`` for ``"sphere"``, ``thickness`` for a curve.

    Raises:
        ArgumentError: if the name is unknown or an option is not the toy's.
    """
    if name not in TOYS:
        raise unknown_name("toy", name, TOYS)
    try:
        return TOYS[name](**options)
    except TypeError as error:
        raise ArgumentError(f"options {sorted(options)} for toy {name!r}: {error}") from error
