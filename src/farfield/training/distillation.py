"""What a student is trained towards when it is to sample in few steps: the targets of the known kinds of distillation.

Offline, from whole runs of the teacher: the finished sample (KD, Luhman & Luhman 2021) or states on the way as well (DFNO,
Zheng et al. 2023). Online, from a few steps: progressive distillation (PD, Salimans & Ho 2022) matches where two steps lead on
the sampling trajectory; consistency distillation (CD, Song et al. 2023) and TRACT (Berthelot et al. 2023) match the denoiser's
own output one step later. All are stated for the denoiser in variance-exploding coordinates, where an Euler step

    J(x; s → t) = (t/s) x + (1 − t/s) D(x, s)

is also DDIM's. Moving along J follows the sampling trajectory; the student's output at the better point is where it is pulled
(Chen et al., A geometric perspective on diffusion models, appendix D and Eq. 49). Levels are numbers or one for each row.

Targets carry no gradient. Nothing here trains: a loop calls a target, then the loss, then moves the average of the student
(:class:`farfield.training.ema.EMA`). How straight paths are before and after is
:func:`farfield.analysis.straightness.straightening`. That encodings depend on the data alone and not on the network is true of
a teacher that has reached its optimum, with the Gaussian kernel assumed throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.processes.base import expand
from farfield.sampling import Sampler, Step
from farfield.sampling.grids import Grid, as_grid

Level = float | Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Starts and what the teacher makes of them.

    Attributes:
        start: (n, *event) states at ``sigma``.
        sigma: their level.
        target: (n, *event) the finished samples: what the denoiser of a one-step student should answer at ``start``.
        levels: levels of ``between``, decreasing; none for KD.
        between: (K, n, *event) the teacher's states there.
        nfe: evaluations of the teacher for each pair.
    """

    start: Tensor
    sigma: float
    target: Tensor
    levels: tuple[float, ...]
    between: Tensor
    nfe: int


def distillation_pairs(
    teacher: Denoiser,
    sampler: Sampler,
    n: int,
    seed: int = 0,
    *,
    between: Sequence[int] = (),
    first: int = 0,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    **condition: Any,
) -> Pairs:
    """Run the teacher and keep starts, finished samples, and states on the way that are asked for.

    With no ``between`` these are the pairs of KD; with some, those of DFNO. Pair i is the same for any n and batch size, so a
    set can be continued with ``first``.

    Args:
        teacher: the model.
        sampler: a deterministic one, or the target would not be a function of the start.
        n, seed, first: pairs ``first … first + n − 1`` of a seed.
        between: numbers of the steps before which the state is kept, from 1 (0 is the start itself).
        batch_size: pairs made at once; all by default.
        dtype: of the states.
        **condition: passed to the teacher; a tensor with n rows is cut along with the batch.

    Raises:
        ArgumentError: for a sampler with noise, a step that the run does not have, or states between of a sampler that ends
            its samples one by one.
    """
    if sampler.noise is not None:
        raise ArgumentError(
            f"noise = {sampler.noise!r}; expected a deterministic sampler, whose sample its start determines"
        )
    steps = len(sampler.route.legs)
    wanted = sorted(dict.fromkeys(between))
    if wanted and sampler.finish.rule is not None:
        raise ArgumentError(
            f"finish = {sampler.finish!r} ends each sample at a step of its own; expected no states between, or a planned end"
        )
    if wanted and not 1 <= wanted[0] <= wanted[-1] < steps:
        raise ArgumentError(f"between = {list(between)}; this run keeps states before steps 1 to {steps - 1}")
    kept: dict[int, list[Tensor]] = {k: [] for k in (0, *wanted)}
    levels: dict[int, float] = {}

    def keep(step: Step) -> None:
        if step.index in kept:
            kept[step.index].append(step.x)
            levels[step.index] = step.sigma

    out = sampler(
        teacher, n, seed, first=first, batch_size=batch_size, callback=keep, dtype=dtype, **condition
    )  # fmt: skip
    start = torch.cat(kept[0])
    states = torch.stack([torch.cat(kept[k]) for k in wanted]) if wanted else start.new_empty(0, *start.shape)
    return Pairs(start, levels[0], out.x, tuple(levels[k] for k in wanted), states, out.nfe)


def jump(x: Tensor, denoised: Tensor, sigma: Level, sigma_next: Level) -> Tensor:
    """``J``: the Euler step from ``sigma`` to ``sigma_next``, (t/s) x + (1 − t/s) D, shaped like x.

    Args:
        x: states (B, *event) at ``sigma``.
        denoised: the denoiser's output there.
        sigma, sigma_next: levels s > 0 and t ≥ 0, numbers or (B,).
    """
    ratio = _over(sigma_next, sigma, x)
    return ratio * x + (1 - ratio) * denoised


def denoised_for(x: Tensor, target: Tensor, sigma: Level, sigma_next: Level) -> Tensor:
    """The output with which one Euler step leads from x to a target: ``(y − (t/s) x)/(1 − t/s)``, the inverse of :func:`jump`.

    Raises:
        ArgumentError: for levels given as numbers that do not decrease.
    """
    _check_order(sigma, sigma_next)
    ratio = _over(sigma_next, sigma, x)
    return (target - ratio * x) / (1 - ratio)


def progressive_target(teacher: Denoiser, x: Tensor, sigmas: Sequence[Level], **condition: Any) -> Tensor:
    """The output with which the student's one Euler step does what the teacher's several do (PD).

    For two steps s → m → t, with outputs r at x and r' at the middle state (Salimans & Ho 2022, appendix G, in these
    coordinates),

        D = [(t/m)(1 − m/s) r + (1 − t/m) r'] / (1 − t/s),

    a convex combination; so is that of more steps. It is summed as such, for the difference of two close states would cancel.

    Args:
        teacher: the model.
        x: states (B, *event) at the first level.
        sigmas: at least two levels, decreasing, the last of which may be 0; numbers or (B,). Three of them are PD.
        **condition: passed to the teacher.

    Returns:
        (B, *event) without gradient.

    Raises:
        ArgumentError: for fewer than two levels, or numbers that do not decrease.
    """
    if len(sigmas) < 2:
        raise ArgumentError(
            f"sigmas has {len(sigmas)} levels; expected two at least: where the student starts and ends"
        )
    for a, b in pairwise(sigmas):
        _check_order(a, b)
    with torch.no_grad():
        state, total, weight = x, torch.zeros_like(x), 0.0 * _over(sigmas[-1], sigmas[0], x)
        for a, b in pairwise(sigmas):
            output = teacher(state, a, **condition)
            ratio = _over(b, a, x)
            total, weight = ratio * total + (1 - ratio) * output, ratio * weight + (1 - ratio)
            state = ratio * state + (1 - ratio) * output
        return total / weight


def consistency_target(
    teacher: Denoiser, average: Denoiser, x: Tensor, sigma: Level, sigma_next: Level, **condition: Any
) -> Tensor:
    """``r_{θ⁻}(J_φ(x); t)``: the average student's output after one step of the teacher (CD; Chen et al., ALG 10, Eq. 49).

    Args:
        teacher: φ, which makes the step.
        average: θ⁻, the exponential moving average of the student's weights.
        x: states (B, *event) at ``sigma``: ``y + s z``.
        sigma, sigma_next: neighbouring levels of the grid, both positive; numbers or (B,). See :func:`consistency_levels`.
        **condition: passed to both.

    Returns:
        (B, *event) without gradient.

    Raises:
        ArgumentError: for levels given as numbers that do not decrease or end at 0.
    """
    _check_order(sigma, sigma_next)
    if not isinstance(sigma_next, Tensor) and not sigma_next > 0:
        raise ArgumentError(f"sigma_next = {sigma_next}; expected a positive level, where the student is evaluated")
    with torch.no_grad():
        return average(jump(x, teacher(x, sigma, **condition), sigma, sigma_next), sigma_next, **condition)


def transitive_target(
    teacher: Denoiser, average: Denoiser, x: Tensor, sigmas: tuple[Level, Level, Level], **condition: Any
) -> Tensor:
    """TRACT's target: the output whose one step s → t does the teacher's step s → m and the average student's m → t.

    With t = 0 it is :func:`consistency_target`; with the teacher in the student's place it is PD's two steps.

    Args:
        teacher, average, x, condition: as there.
        sigmas: s > m > t ≥ 0, numbers or (B,).

    Returns:
        (B, *event) without gradient.

    Raises:
        ArgumentError: for numbers that do not decrease.
    """
    start, middle, end = sigmas
    _check_order(start, middle)
    _check_order(middle, end)
    with torch.no_grad():
        first = teacher(x, start, **condition)
        second = average(jump(x, first, start, middle), middle, **condition)
        inner, outer, whole = _over(middle, start, x), _over(end, middle, x), _over(end, start, x)
        return (outer * (1 - inner) * first + (1 - outer) * second) / (1 - whole)


def consistency_levels(sigmas: Grid | Sequence[float], place: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbouring levels ``(σ_{n+1}, σ_n)`` of each row, n = 1 … N − 1: those of the grid without its closing 0.

    Args:
        sigmas: the grid, N ≥ 2 positive levels.
        place: (B,) uniform numbers in [0, 1).

    Returns:
        Two tensors (B,) float64 on the device of ``place``.

    Raises:
        ArgumentError: for a grid of a single level.
    """
    levels = torch.tensor(as_grid(sigmas).levels, dtype=torch.float64, device=place.device)
    if len(levels) < 2:
        raise ArgumentError("the grid has a single level; expected two at least")
    index = (place.double() * (len(levels) - 1)).long().clamp_(max=len(levels) - 2)
    return levels[index], levels[index + 1]


def distillation_loss(student: Denoiser, x: Tensor, sigma: Level, target: Tensor, **condition: Any) -> Tensor:
    """``‖D_θ(x; s) − target‖²`` of each row, averaged over the coordinates, (B,); the gradient reaches the student alone."""
    error = student(x, sigma, **condition) - target.detach()
    return (error * error).flatten(1).mean(1)


def _over(low: Level, high: Level, x: Tensor) -> float | Tensor:
    """low/high in float64, shaped to meet x and in its type."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return low / high
    device = x.device
    ratio = torch.as_tensor(low, dtype=torch.float64, device=device) / torch.as_tensor(
        high, dtype=torch.float64, device=device
    )
    return expand(ratio.to(x.dtype), x)


def _check_order(high: Level, low: Level) -> None:
    """Levels that are tensors stay unread, which on a GPU would wait for it."""
    if not isinstance(high, Tensor) and not isinstance(low, Tensor) and not 0 <= low < high:
        raise ArgumentError(f"levels {high:g} and {low:g}; expected falling ones, not negative")
