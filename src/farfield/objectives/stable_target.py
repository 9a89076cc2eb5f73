"""The stable target field: the posterior mean over a reference batch as the target of denoising.

    ȳ(x, σ) = Σ_k w_k y_k,   w = softmax_k log k(‖x − y_k‖; σ),   y_1 … y_n the reference, the source of x among them

(Xu, Tong, Jaakkola 2023, equation 3.4 of Xu 2024.) It is the denoiser of the law :class:`~farfield.distributions.Empirical`
of the reference. Because the source is in the reference, ``w_k`` is the probability that y_k is the source given x and
the unordered batch; ȳ is therefore the expectation of the usual target given these, and

    E[ȳ | x] = E[y | x]   for every n,      Var ȳ = Var y − E Σ_k w_k ‖y_k − ȳ‖².

With n = 1 it is denoising score matching; with the whole data set its variance is zero. Targets for score, noise,
velocity or a raw network follow from ȳ as they do from y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.distributions.base import level
from farfield.distributions.posterior import Points, Request
from farfield.errors import ArgumentError
from farfield.processes import Diffusion, Process

#: Rows treated together, and points of a block; they bound the logits that exist at a time.
_ROWS, _BLOCK = 1024, 4096


@dataclass(frozen=True)
class Diagnostics:
    """What the weights of a stable target say, (B,) each in float64.

    Attributes:
        ess: ``1/Σ w²``, the effective number of reference points, from 1 to n.
        source: weight of the source; NaN where it was not told.
        within: ``Σ w_k ‖y_k − ȳ‖²``, by which the target's variance given x is smaller than that of the clean sample.
    """

    ess: Tensor
    source: Tensor
    within: Tensor


def stable_target(
    noisy: Tensor,
    sigma: float | Tensor,
    reference: Tensor,
    source: Tensor | None = None,
    labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    process: Process | None = None,
    allowed: Tensor | None = None,
    diagnostics: bool = False,
) -> tuple[Tensor, Diagnostics | None]:
    """Stable targets of noisy samples over a reference batch; nothing is differentiated, nothing autocast.

    For x of a time-dependent process, ``x_t = α y + s z``, pass ``x_t/α`` and ``σ = s/α`` (``TimeMap.to_ve``): the
    weights are the same. Weights are right in float32 data down to σ = 1e-3, near-duplicates included (see
    :mod:`farfield.distributions.posterior`). Memory is O(B (n + d)) beside the reference.

    Args:
        noisy: x (B, *event).
        sigma: noise levels > 0, a number, () or (B,).
        reference: y (n, *event), float32 or float64.
        source: the clean samples behind ``noisy``: either their places in the reference, (B,) integers; or the samples
            themselves (B, *event), not in the reference, which are then put in front of it. None where every source is
            known to be there, as in a whole data set: without its source a target is biased by O(1/n).
        labels: (B,) integer classes; −1 is a hidden class, for which all references count. Else only those of the same
            class do, for a network that is told the class learns the law of that class.
        reference_labels: (n,) integer classes of the reference, which ``labels`` are compared with.
        process: the perturbation process; Gaussian diffusion by default.
        allowed: (B, n) which references may count for which row, beside the classes.
        diagnostics: whether to return :class:`Diagnostics`; costs about as much as the targets again.

    Returns:
        ȳ in the shape and type of ``noisy``, and the diagnostics or None.

    Raises:
        ArgumentError: if shapes or types disagree, or a place is not in the reference.
        DataError: if the reference holds values that are not finite (looked at on the CPU only).
    """
    process = process if process is not None else Diffusion()
    with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
        rows = len(noisy)
        _check(noisy, reference)
        if source is not None and source.is_floating_point():
            reference, reference_labels, allowed = _insert(noisy, source, reference, labels, reference_labels, allowed)
            source = torch.arange(rows, device=noisy.device)
        elif source is not None:
            _check_places(source, rows, len(reference))
        mask = _mask(noisy, reference, labels, reference_labels, allowed)
        levels = level(sigma, noisy.device, rows)
        if not isinstance(levels, Tensor):
            levels = torch.full((), levels, dtype=torch.float64, device=noisy.device)
        levels = levels.reshape(-1).expand(rows)
        points = Points(reference.reshape(len(reference), -1), None, _BLOCK, fresh=True)
        flat = noisy.flatten(1).to(torch.promote_types(noisy.dtype, torch.float32))
        means, facts = [], []
        for part in torch.arange(rows, device=noisy.device).split(_ROWS):
            request = Request(flat, levels, allowed=mask)
            if rows > _ROWS:
                request = request.rows(part)
            means.append(points.average(request, process).vectors[0].to(noisy.dtype))
            if diagnostics:
                weights, within = points.spread(request, process)
                own = weights[:, 0] * torch.nan if source is None else _pick(weights, source[part])
                facts.append(torch.stack((1 / weights.square().sum(1), own, within)))
        target = torch.cat(means).view(noisy.shape)
        return target, Diagnostics(*torch.cat(facts, 1)) if diagnostics else None


def _pick(weights: Tensor, places: Tensor) -> Tensor:
    return weights.gather(1, places.to(weights.device).unsqueeze(1)).squeeze(1)


def _check(noisy: Tensor, reference: Tensor) -> None:
    if reference.ndim < 2 or len(reference) == 0 or reference.shape[1:] != noisy.shape[1:]:
        wanted = ", ".join(("n", *map(str, noisy.shape[1:])))
        raise ArgumentError(f"reference has shape {tuple(reference.shape)}; expected ({wanted}) with n >= 1")
    if reference.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"reference has type {reference.dtype}; expected float32 or float64")


def _check_places(source: Tensor, rows: int, count: int) -> None:
    if source.shape != (rows,):
        raise ArgumentError(f"source has shape {tuple(source.shape)}; expected ({rows},) places or clean samples")
    # Only where looking is free: on a GPU it would wait for the device at every step.
    if source.device.type == "cpu" and rows and not 0 <= int(source.min()) <= int(source.max()) < count:
        raise ArgumentError(
            f"source reaches from {int(source.min())} to {int(source.max())}; expected places in the reference, "
            f"0 to {count - 1}: without its source a target is biased"
        )


def _insert(
    noisy: Tensor,
    source: Tensor,
    reference: Tensor,
    labels: Tensor | None,
    reference_labels: Tensor | None,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The reference with the sources in front; a source without a class counts for rows without one, and for itself."""
    if source.shape != noisy.shape:
        raise ArgumentError(f"source has shape {tuple(source.shape)}; expected {tuple(noisy.shape)}")
    if labels is not None and reference_labels is not None:
        reference_labels = torch.cat((labels.to(reference_labels), reference_labels))
    if allowed is not None:
        own = torch.eye(len(noisy), dtype=torch.bool, device=allowed.device)
        allowed = torch.cat((own, allowed), 1)
    return torch.cat((source.to(reference), reference)), reference_labels, allowed


def _mask(
    noisy: Tensor, reference: Tensor, labels: Tensor | None, reference_labels: Tensor | None, allowed: Tensor | None
) -> Tensor | None:
    """Which references count for which row, (B, n), or None for all."""
    shape = (len(noisy), len(reference))
    if allowed is not None and (allowed.shape != shape or allowed.dtype != torch.bool):
        raise ArgumentError(f"allowed has shape {tuple(allowed.shape)}, {allowed.dtype}; expected {shape} of bool")
    if labels is None:
        return allowed
    if reference_labels is None:
        raise ArgumentError("labels were given without reference_labels; expected the classes of the reference too")
    if labels.shape != shape[:1]:
        raise ArgumentError(f"labels has shape {tuple(labels.shape)}; expected {shape[:1]}")
    if reference_labels.shape != shape[1:]:
        raise ArgumentError(f"reference_labels has shape {tuple(reference_labels.shape)}; expected {shape[1:]}")
    own, other = labels.to(noisy.device).unsqueeze(1), reference_labels.to(noisy.device)
    same = (own == other) | (own == -1)
    return same if allowed is None else same & allowed
