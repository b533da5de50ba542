"""A run's first part: the rows are read and checked before anything that takes time is loaded."""

from typing import Any

from rich.console import Console

from adapters.errors import AdapterError
from adapters.names import AdapterName
from training.classify import ClassifyTask
from training.config import ClassifyConfig, InstructConfig, TrainConfig
from training.errors import TrainingError
from training.instruct import InstructTask
from training.task import Task

_EXTRA = ("peft", "accelerate", "matplotlib")


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train, compare, publish; return what results.json holds.

    Raises:
        TrainingError: with the mend in its message.
    """
    try:
        if config.publish is not None:
            AdapterName.parse(config.publish)
        task = make_task(config)
        # Trainer, PEFT and matplotlib take seconds to import; bad rows are told without them.
        from training.pipeline import run_task

        return run_task(task, console)
    except AdapterError as error:
        raise TrainingError(error.message) from error
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise TrainingError(f"{error.name} is not installed: pip install 'tenora[train]'") from error


def make_task(config: TrainConfig) -> Task[Any]:
    """The task that ``config`` is of, its rows read and checked."""
    if isinstance(config, InstructConfig):
        return InstructTask(config)
    assert isinstance(config, ClassifyConfig)
    return ClassifyTask(config)
