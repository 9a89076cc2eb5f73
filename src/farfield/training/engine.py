"""The processes of a run, on ``accelerate`` over ``torch.distributed``: one alone, or those that a launcher started.

``accelerate launch`` and ``torchrun`` name each process's rank in its environment; a process without such names is a
run of its own. CPUs talk through gloo, GPUs through NCCL. All processes see the same files.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from farfield.errors import ArgumentError, FarfieldError, ProcessLostError
from farfield.numerics.devices import choose_device

T = TypeVar("T")
#: How long a process waits for the others: the first one may be drawing samples to be measured.
PATIENCE = timedelta(hours=2)
#: What gloo and NCCL say when a connection ends; the most telling first.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "Socket Timeout",
    "NCCL error",
    "gloo",
)


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


class Engine:
    """This process's place among those of the run.

    Args:
        device: ``auto`` (each process its own GPU, or else the CPU), ``cpu`` or ``cuda``.

    Attributes:
        rank, world: number of this process, and of all.
        device: where it computes.

    Raises:
        ArgumentError: for a device that is not there, or a launcher set up for what training does not do.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device, self.rank, self.world = choose_device(device), 0, 1
        self.accelerator: Any = None
        if launched():
            # Imported here: a run of one process needs none of it, and it takes seconds.
            from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs

            a = Accelerator(
                cpu=self.device.type == "cpu",
                mixed_precision="no",  # the objective says what may be rounded, see TrainStep
                kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            )
            if a.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
                raise ArgumentError(
                    f"launched for {a.distributed_type.value}; training copies the model to every process: "
                    "start it with torchrun, or accelerate launch --multi_gpu"
                )
            self.accelerator, self.device = a, a.device
            self.rank, self.world = int(a.process_index), int(a.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module, unused: bool = False) -> nn.Module:
        """The module with its gradients averaged over the processes.

        Args:
            module: what is differentiated.
            unused: whether some of its parameters take no part in the loss; looking for them costs time in every step.
        """
        if self.accelerator is None:
            return module
        if unused:
            from accelerate import DistributedDataParallelKwargs

            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        return self.accelerator.prepare_model(module)

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients of a wrapped module add up in this process alone."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def mean(self, values: Iterable[float]) -> list[float]:
        """The averages over the processes of numbers that each of them has."""
        numbers = list(values)
        if self.accelerator is None:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return (self.accelerator.reduce(total, "mean")).tolist()

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something in the first process alone; every process gets its result, or its error.

        Args:
            action: returns something small that can be sent to the other processes of this run.
        """
        if self.accelerator is None:
            return action()
        from accelerate.utils import broadcast_object_list

        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = action()
            except FarfieldError as error:
                answer[1] = error
        broadcast_object_list(answer, from_process=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    @contextmanager
    def watch(self, advice: Callable[[], str]) -> Iterator[None]:
        """Turn the end of another process, however it shows first, into one clear line of this one.

        Args:
            advice: what can be done, in words.
        """
        if self.accelerator is None:
            yield
            return
        where = f"process {self.rank} of {self.world}"

        def told(number: int, frame: object) -> None:
            raise ProcessLostError(
                f"{where}: told to end (SIGTERM), as launchers do when another process of the run has ended; {advice()}"
            )

        # Only a program's main thread may say how signals are met.
        mine = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, told) if mine else None
        try:
            yield
        except RuntimeError as error:
            sign = next((sign for sign in _LOST if sign in str(error)), None)
            if sign is None:
                raise
            raise ProcessLostError(f"{where}: another process of this run has ended ({sign}); {advice()}") from error
        finally:
            if mine:
                signal.signal(signal.SIGTERM, before)


def close() -> None:
    """Leave the group of processes, if there is one; the last thing that a command does."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
