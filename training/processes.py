"""Several processes that train one model together; alone, nothing is exchanged.

    torchrun --nproc-per-node 2 -m training …                     on CPUs, where accelerate launch starts only one
    accelerate launch --num_processes 2 --module training …       on GPUs

Each computes its share of the rows of every step, and gradients are summed. What comes out does not depend on how
many there are, but for the order in which numbers are added.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from training.errors import TrainingError

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among ``count`` of them.

    Every exchange raises TrainingError where another process has ended.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.index == 0

    def sum(self, value: float, device: torch.device) -> float:
        """The sum over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        with _together():
            torch.distributed.all_reduce(total)
            return float(total)

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over all processes; who had no rows adds nothing."""
        if self.count == 1:
            return
        given = list(parameters)
        for parameter in given:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in given if parameter.grad is not None])
        with _together():
            torch.distributed.all_reduce(flat)
        for parameter, part in zip(given, torch.split(flat, [parameter.numel() for parameter in given]), strict=True):
            parameter.grad = part.view_as(parameter)

    def agree(self, value: _Value) -> _Value:
        """What the first process has in its place: whatever was timed may have come out otherwise in another."""
        if self.count == 1:
            return value
        said = [value]
        with _together():
            torch.distributed.broadcast_object_list(said)
        return said[0]

    def gather(self, value: _Value) -> list[_Value]:
        """What each process has, in their order."""
        if self.count == 1:
            return [value]
        said: list[_Value] = [value] * self.count
        with _together():
            torch.distributed.all_gather_object(said, value)
        return said

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            with _together():
                torch.distributed.barrier()


@contextmanager
def _together() -> Iterator[None]:
    """Say in one sentence that somebody is no longer there; the backend says it by a line of its source.

    Raises:
        TrainingError: an exchange with the other processes broke off.
    """
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"the processes of this run have lost one another ({str(error).strip().partition(chr(10))[0]}): if one of "
            "them said why it ended, that is the cause; start all of them again, with --resume if something was saved"
        ) from error


def join_processes(device: torch.device) -> Processes:
    """This process's place among those that were launched together."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    if state.num_processes == 1:
        raise TrainingError("several processes were launched, but they do not find one another: use torchrun")
    return Processes(state.process_index, state.num_processes)
