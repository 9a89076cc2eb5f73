"""Stable targets for training: which references a step uses, how they are changed, and which of them count for whom.

The reference of a step is one for all its images and all processes: the mini-batch and, without replacement, others from
a shuffled stream (Xu 2024, algorithm 1). It is a function of (seed, step), so that each process makes the same one and
computes the targets of its own images.

With augmentation a point is an augmented image. The mini-batch's images are in the reference as the network sees them, and the
others are changed by independent draws of the same pipeline. What the network is told is a condition: given a class or
an augmentation, only references with the same class and augmentation count, or else the network would be trained
towards the law of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.data.batches import first_places, reference_indices
from farfield.errors import ArgumentError
from farfield.objectives.stable_target import stable_target
from farfield.processes import Process
from farfield.processes.base import expand

#: ``take(rows) -> images, labels``: rows of the data set (CPU int64) on the device of training.
Take = Callable[[Tensor], tuple[Tensor, Tensor | None]]
#: ``augment(images, ids, purpose) -> images, told``: each image changed by random numbers of its own, and how (n, k).
Augment = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TargetConfig:
    """What the network is trained to return.

    Args:
        kind: ``dsm``, the clean image itself; or ``stf``, the posterior mean over a reference batch, which has the same
            expectation and less variance.
        reference: images in the reference batch of a step, over all processes and the mini-batch included; a number
            beyond the data set's uses all of it.
        match_augmentation: where the network is told the augmentation, let only references with the same one count;
            ``false`` mixes them, a target of lower variance for the law of all augmentations together.
    """

    kind: Literal["dsm", "stf"] = "dsm"
    reference: int = 4096
    match_augmentation: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("dsm", "stf"):
            raise ArgumentError(f"target.kind = {self.kind!r}; expected 'dsm' or 'stf'")
        if not 1 <= self.reference <= 2**24:
            raise ArgumentError(f"target.reference = {self.reference}; expected 1 to 2^24 images")


@dataclass(frozen=True)
class _Reference:
    """A step's reference: points (n, *event), classes (n,), augmentations (n, k), and how its entries stand for rows.

    ``first`` (B,) is the place where the row of each entry of the mini-batch occurs first; ``counts`` (n,) marks one
    entry for each row.
    """

    points: Tensor
    labels: Tensor | None
    told: Tensor | None
    first: Tensor
    counts: Tensor | None


class StableTargets:
    """Makes the targets of a run's steps.

    Args:
        config: the kind of target; ``reference`` and ``match_augmentation`` are read.
        count: number of images in the data set.
        take: gives rows of the data set, as the run's feed does.
        batch_size: images a step, over all processes.
        seed: of the run.
        augment: the run's augmentation, or None.
        inform: whether the network is told of it.
        process: the perturbation process; Gaussian diffusion by default.

    Raises:
        ArgumentError: if the reference cannot hold the mini-batch.
    """

    def __init__(
        self,
        config: TargetConfig,
        count: int,
        take: Take,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        inform: bool = False,
        process: Process | None = None,
    ) -> None:
        if config.reference < min(batch_size, count):
            raise ArgumentError(
                f"target.reference = {config.reference}; expected at least the mini-batch, "
                f"{min(batch_size, count)} images"
            )
        self.config, self.count, self.take, self.batch_size, self.seed = config, count, take, batch_size, seed
        self.augment, self.process = augment, process
        self.match = augment is not None and inform and config.match_augmentation
        self._last: tuple[int, _Reference] | None = None

    def rows_of(self, step: int, rows: Tensor) -> Tensor:
        """The rows of the data set that a step's reference takes: those of its mini-batch, then the others, on the CPU."""
        fresh = first_places(rows) == torch.arange(len(rows))
        others = reference_indices(self.count, rows, self.config.reference, step, self.seed)[int(fresh.sum()) :]
        return torch.cat((rows, others))

    def _reference(self, step: int, rows: Tensor, device: torch.device) -> _Reference:
        """The reference of a step; remembered, for the parts of a mini-batch ask for it one after the other."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        self._last = None  # let the old one go before the new one is made
        first = first_places(rows)
        fresh = first == torch.arange(len(rows))
        wanted = self.rows_of(step, rows)
        others = wanted[len(rows) :]
        points, labels = self.take(wanted)
        told = None
        if self.augment is not None:
            # Every row of the mini-batch keeps its entry: two occurrences of an image have changed differently.
            first_id, other_id = step * self.batch_size, step * self.config.reference
            ids = torch.arange(first_id, first_id + len(rows), device=device)
            own = self.augment(points[: len(rows)], ids, "augment")
            ids = torch.arange(other_id, other_id + len(others), device=device)
            rest = self.augment(points[len(rows) :], ids, "reference augment")
            points, told = (torch.cat(pair) for pair in zip(own, rest, strict=True))
        counts = None
        if not bool(fresh.all()):
            counts = torch.cat((fresh, torch.ones(len(others), dtype=torch.bool))).to(device)
        reference = _Reference(points, labels, told, first.to(device, non_blocking=True), counts)
        self._last = step, reference
        return reference

    def _allowed(self, reference: _Reference, places: Tensor, told: Tensor | None) -> Tensor | None:
        """Which entries count for the images at ``places`` beside the classes: (b, n), or None for all."""
        allowed: Tensor | None = None
        if reference.counts is not None:
            # One entry for each row of the data set, which for the image's own row is its own.
            allowed = reference.counts.repeat(len(places), 1)
            allowed.scatter_(1, reference.first[places].unsqueeze(1), False)
            allowed.scatter_(1, places.unsqueeze(1), True)
        if self.match:
            assert reference.told is not None
            if told is None:
                raise ArgumentError("told is None; expected the augmentations that the network is told of")
            for own, other in zip(told.T, reference.told.T, strict=True):  # a few columns
                same = own.unsqueeze(1) == other
                allowed = same if allowed is None else allowed & same
        return allowed

    def __call__(
        self,
        step: int,
        rows: Tensor,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        labels: Tensor | None = None,
        told: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """The targets of some of a step's images, the shape of ``images``.

        Args:
            step: its number.
            rows: (B,) rows of the data set that the whole step uses, in all processes, on the CPU.
            images: (b, *event) as the network is to restore them, after augmentation.
            sigma: noise levels (b,).
            noise: standard normal numbers, the shape of ``images``.
            labels: the classes that the network is told, (b,), −1 for a hidden one; or None.
            told: the augmentations that the network is told, (b, k), or None.
            ids: (b,) numbers of the images in the run, ``step · batch_size + position``; None for all of the step's.

        Raises:
            ArgumentError: if ``images`` are some of the step's and ``ids`` are not given.
        """
        with torch.no_grad():
            if ids is None and len(images) != len(rows):
                raise ArgumentError(f"ids is None with {len(images)} of {len(rows)} images; expected their numbers")
            device = images.device
            places = torch.arange(len(rows), device=device) if ids is None else ids - step * self.batch_size
            reference = self._reference(step, rows, device)
            target, _ = stable_target(
                images + expand(sigma, images) * noise,
                sigma,
                reference.points,
                source=places,
                labels=labels,
                reference_labels=None if labels is None else reference.labels,
                process=self.process,
                allowed=self._allowed(reference, places, told),
            )
            return target
