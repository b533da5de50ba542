"""A run's first part: the rows are read and checked before anything that takes time is loaded."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from safetensors import SafetensorError

from adapters.errors import AdapterError
from adapters.names import AdapterName
from training.config import ClassifyConfig, DpoConfig, InstructConfig, RewardConfig, TextConfig, TrainConfig
from training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from training.reporting.results import Results
    from training.tasks.task import Task

_EXTRAS = ("peft", "accelerate", "matplotlib", "sklearn", "pyarrow", "tenacity", "datasketch")


def train(config: TrainConfig, console: Console) -> "Results | None":
    """Train, compare, publish; return what results.json holds. A dry run returns nothing.

    Raises:
        TrainingError: with the mend in its message.
    """
    try:
        if config.publish is not None:
            AdapterName.parse(config.publish)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and Path("-") in (config.data, config.validation, config.test):
            raise ConfigError("standard input cannot be read by several processes: give a file")
        task = make_task(config)
        # PEFT and matplotlib take seconds to import; bad rows are told without them.
        from training.pipeline import run_task

        return run_task(task, console)
    except AdapterError as error:
        raise TrainingError(error.message) from error
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise TrainingError(f"{error.name} is not installed: pip install 'tenora[train]'") from error
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        raise TrainingError(f"{error.filename or 'the run'}: {error.strerror}") from error
    except SafetensorError as error:  # a full disk, as safetensors puts it
        raise TrainingError(f"weights cannot be read or written: {error}") from error


def make_task(config: TrainConfig) -> "Task[Any, Any]":
    """The task that ``config`` is of, its rows read and checked."""
    match config:
        case InstructConfig():
            from training.tasks.instruct import InstructTask

            return InstructTask(config)
        case ClassifyConfig():
            from training.tasks.classify import ClassifyTask

            return ClassifyTask(config)
        case TextConfig():
            from training.tasks.text import TextTask

            return TextTask(config)
        case RewardConfig():
            from training.tasks.reward import RewardTask

            return RewardTask(config)
        case DpoConfig():
            from training.tasks.dpo import DpoTask

            return DpoTask(config)
    raise TypeError(f"no task is made of {type(config).__name__}")
