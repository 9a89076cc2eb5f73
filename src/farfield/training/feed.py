"""The batches of a run, on its device before the step asks for them.

A data set that fits stays on the device whole, and a batch is one indexing kernel. A larger one stays in the host's
memory: while a step runs, a thread gathers the next batch and its references into page-locked memory and queues the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.data import DataSet, batch_indices

#: The share of a device's free memory that a resident data set may take.
RESIDENT = 0.25


@dataclass(frozen=True)
class Batch:
    """One process's part of a step.

    Args:
        images: (b, *event).
        labels: (b,) classes, or None.
        ids: (b,) the numbers of the images in the run, ``step · batch_size + position``.
        rows: (B,) the rows of the data set that the whole step uses, in all processes, on the CPU.
        ahead: further rows that the step will ask for, with their images and labels, where they were gathered ahead.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    rows: Tensor
    ahead: tuple[Tensor, Tensor, Tensor | None] | None = None


class Feed:
    """The batches of a run, for one of its processes.

    Args:
        data: the training images.
        use_labels: whether batches have classes.
        device: where batches go.
        batch_size: images a step, over all processes.
        seed: of the order.
        rank, world: the process takes the rank-th of ``world`` equal parts of each batch.
        resident: keep all images on the device; by default where they take at most a quarter of its free memory.

    Attributes:
        also: from a step and its rows to all rows that :meth:`take` will be asked for, to be gathered ahead; or None.
    """

    def __init__(
        self,
        data: DataSet,
        use_labels: bool,
        device: torch.device,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        resident: bool | None = None,
    ) -> None:
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.part = slice(rank * (batch_size // world), (rank + 1) * (batch_size // world))
        self.count = len(data)
        if resident is None:
            resident = device.type == "cpu" or _fits(data.images, device)
        self.resident = resident
        labels = data.labels if use_labels else None
        self.images = data.images.to(device) if resident else data.images
        self.labels = None if labels is None else (labels.to(device) if resident else labels)
        self._worker = None if resident else ThreadPoolExecutor(1, thread_name_prefix="farfield-feed")
        self._next: tuple[int, Future[Batch]] | None = None
        self.also: Callable[[int, Tensor], Tensor] | None = None
        self._ahead: tuple[Tensor, Tensor, Tensor | None] | None = None

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels of rows of the data set (CPU int64), on the device."""
        if self._ahead is not None and torch.equal(self._ahead[0], rows):
            return self._ahead[1:]
        return self._gather(rows)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.resident:
            at = rows.to(self.device, non_blocking=True)
            return self.images[at], None if self.labels is None else self.labels[at]
        images = self.images[rows]
        labels = None if self.labels is None else self.labels[rows].to(self.device)
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self.device, non_blocking=True), labels

    def _batch(self, step: int) -> Batch:
        rows = batch_indices(self.count, self.batch_size, step, self.seed)
        images, labels = self._gather(rows[self.part])
        first = step * self.batch_size
        ids = torch.arange(first + self.part.start, first + self.part.stop, device=self.device)
        ahead = None
        if self.also is not None and not self.resident:
            wanted = self.also(step, rows)
            ahead = (wanted, *self._gather(wanted))
        return Batch(images, labels, ids, rows, ahead)

    def __call__(self, step: int) -> Batch:
        """The batch of step number ``step``; the next one is then being prepared."""
        if self._worker is None:
            return self._batch(step)
        ready = self._next
        batch = ready[1].result() if ready is not None and ready[0] == step else self._batch(step)
        self._next = step + 1, self._worker.submit(self._batch, step + 1)
        self._ahead = batch.ahead
        return batch

    def close(self) -> None:
        """Let the thread go."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() * images.element_size() <= RESIDENT * free
