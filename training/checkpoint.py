"""What a run needs to go on where it was: written aside, synced, and renamed in one step.

    checkpoints/
      epoch-1/ epoch-2/ …      what was trained, after each epoch
      step-000120/             the newest state: weights, the optimiser's moments, random state, and what was measured

A crash at any instant leaves the state before or the new one. Nothing is pickled.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.aside import written_aside
from training.errors import TrainingError

_TENSORS, _FACTS, _WEIGHTS = "state.safetensors", "state.json", "weights"
_STEP = "step-"


@dataclass(frozen=True, slots=True)
class State:
    """A run between two steps.

    Args:
        tensors: The optimiser's moments and the random state, by name.
        facts: Position and history, as JSON holds them.
        weights: The folder of what was trained so far.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    weights: Path


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def epoch(self, number: int) -> Path:
        """The folder of what was trained up to the end of an epoch."""
        return self._folder / f"epoch-{number}"

    def save_epoch(self, number: int, save: Callable[[Path], None]) -> None:
        """Keep an epoch; ``save`` writes into the folder that it is given."""
        self._replace(self.epoch(number), save)

    def save_state(
        self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], save: Callable[[Path], None]
    ) -> None:
        """Keep the state after ``step`` steps, and drop the one before."""

        def write(folder: Path) -> None:
            save(folder / _WEIGHTS)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
            (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

        newest = self._folder / f"{_STEP}{step:06d}"
        self._replace(newest, write)
        for older in self._states():
            if older != newest:
                shutil.rmtree(older)

    def newest(self) -> State | None:
        """The newest state, or None if nothing was saved yet.

        Raises:
            TrainingError: it cannot be read.
        """
        states = self._states()
        if not states:
            return None
        folder = states[-1]
        with reading(folder):
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            return State(load_file(folder / _TENSORS), facts, folder / _WEIGHTS)

    def clear(self) -> None:
        """Forget the state of a run that is over; what each epoch trained stays."""
        for folder in self._states():
            shutil.rmtree(folder)

    def _states(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_STEP}*"))

    def _replace(self, target: Path, write: Callable[[Path], None]) -> None:
        try:
            with written_aside(target) as aside:
                write(aside)
        except (OSError, SafetensorError) as error:  # the second is a full disk, as safetensors puts it
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(f"the checkpoint {target} cannot be written: {reason}") from error


@contextmanager
def reading(state: Path) -> Iterator[None]:
    """Whatever of the state in this folder is cut off or missing ends in one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        message = f"the state in {state} cannot be read ({error}): remove {state.parent} and start anew"
        raise TrainingError(message) from error


def random_state(device: torch.device, index: int) -> dict[str, Tensor]:
    """Where the random numbers of process ``index`` are, as tensors."""
    states = {f"random.{index}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"random.{index}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: dict[str, Tensor], device: torch.device, index: int) -> None:
    """Go on with the random numbers of process ``index`` where ``random_state`` was taken.

    Older states hold those of the first process alone.
    """
    own = f"random.{index}." if f"random.{index}.cpu" in states else "random."
    torch.set_rng_state(states[f"{own}cpu"])
    if device.type == "cuda" and f"{own}cuda" in states:
        torch.cuda.set_rng_state(states[f"{own}cuda"], device)
