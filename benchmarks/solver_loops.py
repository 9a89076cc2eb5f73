"""Every step rule of the registry as the plain loop that one would write for it: what a step costs without a library.

Each is ``loop(denoiser, x, sigmas) -> x`` for levels that end with 0, and does what the solver of that name does by default.
Weights that are integrals are computed once for a grid, as the solvers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import RK45 as Pair
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.sampling.solvers import PNDM

Loop = Callable[[Denoiser, Tensor, list[float]], Tensor]
EQUAL = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


# -- one step -----------------------------------------------------------------------------------------------------------


def euler(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        slope = (x - denoiser(x, a)) / a
        x = x + (b - a) * slope
    return x


def heun(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        slope = (x - denoiser(x, a)) / a
        y = x + (b - a) * slope
        if b > 0:
            y = x + (b - a) * (slope + (y - denoiser(y, b)) / b) / 2
        x = y
    return x


def dpm2(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        s = math.sqrt(a * b)
        y = x + (s - a) * (x - d) / a
        x = x + (b - a) * (y - denoiser(y, s)) / s
    return x


def dpm3(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        h = math.log(a / b)
        s1, s2 = a * math.exp(-h / 3), a * math.exp(-2 * h / 3)
        noise = (x - d) / a
        u = x + (s1 - a) * noise
        first = (u - denoiser(u, s1)) / s1 - noise
        u = x + (s2 - a) * noise - 2 * s2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * first
        second = (u - denoiser(u, s2)) / s2 - noise
        x = x + (b - a) * noise - 1.5 * b * (math.expm1(h) / h - 1) * second
    return x


def dpmpp_2s(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        s = math.sqrt(a * b)
        y = (s / a) * x + (1 - s / a) * d
        x = (b / a) * x + (1 - b / a) * denoiser(y, s)
    return x


def taylor2(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        slope, level = (x - d) / a, torch.tensor(a, dtype=x.dtype)
        rate = torch.func.jvp(denoiser, (x, level), (slope, torch.ones_like(level)))[1]
        x = x + (b - a) * slope - (b - a) ** 2 / (2 * a) * rate
    return x


# -- several steps ------------------------------------------------------------------------------------------------------


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    old = None
    previous = 0.0
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        h = math.log(a / b)
        r = previous / h
        middle = d if old is None else (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x = (b / a) * x - math.expm1(-h) * middle
        old, previous = d, h
    return x


def dpmpp_3m(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    known: list[Tensor] = []
    lengths: list[float] = []
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        h = math.log(a / b)
        part = -math.expm1(-h)
        x = (1 - part) * x + part * d
        if known:
            once = (d - known[0]) * (h / lengths[0])
            tilt = 1 - part / h
            if len(known) > 1:
                before = (known[0] - known[1]) * (h / lengths[1])
                bend = (once - before) * (h / (lengths[0] + lengths[1]))
                x = x + tilt * (once + bend * (lengths[0] / h)) - (tilt / h - 0.5) * bend
            else:
                x = x + tilt * once
        known, lengths = [d, *known[:1]], [h, *lengths[:1]]
    return x


def adams(weights: Callable[[tuple[float, ...]], Sequence[Sequence[float]]]) -> Loop:
    """A loop that moves the state by the weighted sum of up to four slopes."""

    def loop(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
        slopes: list[Tensor] = []
        for a, own in zip(sigmas, (*weights(tuple(sigmas[:-1])), ()), strict=False):
            d = denoiser(x, a)
            if not own:
                return d
            slopes = [(x - d) / a, *slopes[:3]]
            for w, slope in zip(own, slopes, strict=False):
                x = x + w * slope
        return x

    return loop


def integrals(
    known: Sequence[float], a: float, b: float, u: Callable[[np.ndarray], np.ndarray], power: int
) -> list[float]:
    """``∫ ℓ_j(u(s)) w(s) d log s`` from b to a, with ``w = −s`` for slopes (power 1) and ``b/s`` for outputs (power −1)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = math.log(a / b) / 2
    s = np.exp(math.log(a) - half + half * nodes)
    measure = half * weights * (-s if power == 1 else b / s)
    points = u(np.asarray(known))
    basis = [
        np.prod([(u(s) - other) / (own - other) for other in points if other != own], axis=0) * np.ones_like(s)
        for own in points
    ]
    return [float(measure @ values) for values in basis]


def vp_time(sigma: np.ndarray) -> np.ndarray:
    """The time of the linear-β VP process with β from 0.1 to 20."""
    rise = 19.9
    return (np.sqrt(0.01 + 2 * rise * np.log1p(sigma * sigma)) - 0.1) / rise


def slopes_of(variable: Callable[[np.ndarray], np.ndarray]) -> Loop:
    """Adams-Bashforth with four slopes in a variable."""

    @lru_cache(maxsize=4)
    def weights(levels: tuple[float, ...]) -> list[list[float]]:
        return [
            integrals(levels[max(0, k - 3) : k + 1][::-1], a, b, variable, 1)
            for k, (a, b) in enumerate(pairwise(levels))
        ]

    return adams(weights)


@lru_cache(maxsize=4)
def equal_weights(levels: tuple[float, ...]) -> list[list[float]]:
    return [[(b - a) * c for c in EQUAL[min(k, 3)]] for k, (a, b) in enumerate(pairwise(levels))]


def spndm(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    old = None
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        slope = (x - d) / a
        x = x + (b - a) * (slope if old is None else (3 * slope - old) / 2)
        old = slope
    return x


def plms(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    slopes: list[Tensor] = []
    for a, b in pairwise(sigmas):
        d = denoiser(x, a)
        if b == 0:
            return d
        slopes = [(x - d) / a, *slopes[:3]]
        if len(slopes) == 1:
            y = x + (b - a) * slopes[0]
            mean = (slopes[0] + (y - denoiser(y, b)) / b) / 2
        else:
            mean = sum(c * slope for c, slope in zip(EQUAL[len(slopes) - 1], slopes, strict=True))  # type: ignore[assignment]
        x = x + (b - a) * mean
    return x


@lru_cache(maxsize=4)
def middles(levels: tuple[float, ...]) -> list[float]:
    rule = PNDM()
    return [rule.sigma((rule.index(a) + rule.index(b)) / 2) for a, b in pairwise(levels[:4])]


def pndm(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    slopes: list[Tensor] = []
    for k, (a, b) in enumerate(pairwise(sigmas)):
        slopes = [(x - denoiser(x, a)) / a, *slopes[:3]]
        if k < 3:
            s = middles(tuple(sigmas))[k]
            y = x + (s - a) * slopes[0]
            second = (y - denoiser(y, s)) / s
            y = x + (s - a) * second
            third = (y - denoiser(y, s)) / s
            y = x + (b - a) * third
            mean = (slopes[0] + 2 * second + 2 * third + (y - denoiser(y, b)) / b) / 6
        else:
            mean = sum(c * slope for c, slope in zip(EQUAL[3], slopes, strict=True))  # type: ignore[assignment]
        x = x + (b - a) * mean
    return x


def corrected(sigmas: tuple[float, ...], u: Callable[[np.ndarray], np.ndarray], points: int) -> list[list[float]]:
    """The weights of outputs in a step once its end is known, for the steps between positive levels."""
    return [
        integrals(sigmas[max(0, k + 2 - points) : k + 2][::-1], a, b, u, -1)
        for k, (a, b) in enumerate(pairwise(sigmas))
    ]


@lru_cache(maxsize=4)
def unipc_weights(levels: tuple[float, ...]) -> list[list[float]]:
    found = corrected(levels, np.log, 3)
    ratio = levels[1] / levels[0]
    found[0] = [(1 - ratio) / 2, (1 - ratio) / 2]
    return found


def unipc(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    weights = unipc_weights(tuple(sigmas[:-1]))
    known: list[Tensor] = []
    before = x
    for k, (a, b) in enumerate(pairwise(sigmas)):
        d = denoiser(x, a)
        if b == 0:
            return d
        known = [d, *known[:2]]
        if k:
            x = (a / sigmas[k - 1]) * before
            for w, value in zip(weights[k - 1], known, strict=True):
                x = x + w * value
        before = x
        ratio = b / a
        x = ratio * x + (1 - ratio) * d
        if k:
            share = math.log(a / b) / math.log(sigmas[k - 1] / a)
            x = x + (1 - ratio) / 2 * share * (d - known[1])
    return x


def root(sigma: np.ndarray) -> np.ndarray:
    """The variable in which the whitened rule interpolates."""
    return sigma ** (1 / 7)


@lru_cache(maxsize=4)
def isotropic_weights(levels: tuple[float, ...]) -> tuple[list[list[float]], list[list[float]]]:
    predict = [
        integrals(levels[max(0, k - 1) : k + 1][::-1], a, b, root, -1) for k, (a, b) in enumerate(pairwise(levels))
    ]
    return predict, corrected(levels, root, 2)


def whitened(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    """Without a Gaussian: outputs interpolated in σ^(1/7), every step once more when the output at its end is known."""
    predict, correct = isotropic_weights(tuple(sigmas[:-1]))
    known: list[Tensor] = []
    before = x
    for k, (a, b) in enumerate(pairwise(sigmas)):
        d = denoiser(x, a)
        if b == 0:
            return d
        known = [d, *known[:1]]
        if k:
            w = correct[k - 1]
            x = (a / sigmas[k - 1]) * before + w[0] * d + w[1] * known[1]
        before = x
        x = (b / a) * x
        for weight, value in zip(predict[k], known, strict=True):
            x = x + weight * value
    return x


# -- steps of its own ---------------------------------------------------------------------------------------------------


def rk45(denoiser: Denoiser, x: Tensor, sigmas: list[float], tol: float = 1e-4) -> Tensor:
    """Dormand and Prince's pair in log σ with a step length for each sample, down to the last positive level."""
    wide = (-1, *(1,) * (x.ndim - 1))
    end, stages, last, estimate = sigmas[-2], Pair.A.tolist(), Pair.B.tolist(), Pair.E.tolist()

    def slope(x: Tensor, left: Tensor) -> Tensor:
        return x - denoiser(x, (end * left.exp()).to(x.dtype).flatten())

    def norm(value: Tensor, size: Tensor) -> Tensor:
        return (value / (tol + tol * size)).flatten(1).double().square().mean(1).sqrt()

    def blend(weights: list[float], slopes: list[Tensor]) -> Tensor:
        return sum(w * k for w, k in zip(weights, slopes, strict=False) if w)  # type: ignore[return-value]

    left = torch.full((len(x),), math.log(sigmas[0] / end), dtype=torch.float64)
    k1 = x - denoiser(x, sigmas[0])
    steep = norm(k1, x.abs())
    probe = torch.minimum(0.01 * norm(x, x.abs()) / steep, left)
    bent = norm(slope(x - probe.to(x.dtype).view(wide) * k1, left - probe) - k1, x.abs()) / probe
    size = torch.minimum(100 * probe, (0.01 / torch.maximum(steep, bent)) ** 0.2)
    growth = torch.full_like(left, 10.0)
    while bool((left > 0).any()):
        h = torch.minimum(size, left)
        step = -h.to(x.dtype).view(wide)
        slopes = [k1]
        for k in range(1, 6):
            slopes.append(slope(x + step * blend(stages[k], slopes), left - Pair.C[k] * h))
        new = x + step * blend(last, slopes)
        slopes.append(slope(new, left - h))
        error = norm(step * blend(estimate, slopes), torch.maximum(x.abs(), new.abs()))
        good = error <= 1
        x, k1 = torch.where(good.view(wide), new, x), torch.where(good.view(wide), slopes[-1], k1)
        left = torch.where(good, left - h, left)
        sized = h * torch.minimum((0.9 * error.clamp(min=1e-10) ** -0.2).clamp(min=0.2), growth)
        growth = torch.where(good, 10.0, 1.0)
        size = torch.where(good & (h < size), torch.maximum(size, sized), sized)
    return denoiser(x, end)


LOOPS: dict[str, Loop] = {
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "dpm3": dpm3,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "taylor2": taylor2,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "deis": slopes_of(vp_time),
    "lms": slopes_of(lambda sigma: sigma),
    "ipndm_v": slopes_of(lambda sigma: sigma),
    "ipndm": adams(equal_weights),
    "spndm": spndm,
    "plms": plms,
    "pndm": pndm,
    "rk45": rk45,
    "whitened": whitened,
}
