"""Runs as a user starts them: in this process, or in one of their own that may be killed."""

import io
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.config import TrainConfig, make_config
from training.reporting.results import Results
from training.run import train
from training.tasks.task import Task

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"rank": 2, "epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu", "dtype": "float32"}
WEIGHTS = "adapter_model.safetensors"

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.training.preloaded"])


def config(task: str, folder: Path, **flags: Any) -> TrainConfig:
    """A small run whose files go to ``folder``/run, and whose store is ``folder``/store."""
    answers = {"answers": 0} if task in ("instruct", "text") else {}
    places = {"output": folder / "run", "store": folder / "store"}
    return make_config(task, {**SMALL, **answers, **places, **flags})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(task: str, folder: Path, **flags: Any) -> Results:
    """Train to the end."""
    results = train(config(task, folder, **flags), quiet())
    assert results is not None
    return results


def weights(folder: Path) -> bytes:
    """The trained adapter of a run, byte by byte."""
    return (folder / "run/adapter" / WEIGHTS).read_bytes()


def flags_of(**given: Any) -> list[str]:
    """Flags as the command line has them."""
    words: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


class Command:
    """``tenora train …`` in a process of its own.

    Args:
        before: called in the process before it begins; for failures.
    """

    def __init__(self, folder: Path, *arguments: str, before: Callable[[], None] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        self.process = _processes.Process(target=_work, args=(arguments, self._out, self._err, before))
        self.process.start()

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def wait(self) -> int | None:
        """Its status; negative where a signal ended it."""
        self.process.join(100)
        if self.process.is_alive():
            self.process.kill()
        return self.process.exitcode

    def finish(self) -> str:
        """What it printed, if it ended well."""
        status = self.wait()
        assert (status, self.stderr) == (0, ""), self.stderr
        return self.stdout

    def events(self) -> Iterator[dict[str, Any]]:
        """Its JSON lines, as they come; they end with the process."""
        place = 0
        while True:
            alive = self.process.is_alive()
            text = self._out.read_text(encoding="utf-8") if self._out.exists() else ""
            whole = text.rfind("\n") + 1
            for line in text[place:whole].splitlines():
                yield json.loads(line)
            place = whole
            if not alive:
                return
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def _work(arguments: tuple[str, ...], out: Path, err: Path, before: Callable[[], None] | None) -> None:
    from training.cli import main

    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("TENORA_")]:
        del os.environ[name]
    torch.set_num_threads(1)
    sys.argv = ["tenora train", *arguments]
    if before is not None:
        before()
    main()


def encoded(task: str, folder: Path, **flags: Any) -> Task[Any, Any]:
    """A task that has read its rows and been given its base."""
    from adapters.base import resolve_base
    from training.run import make_task

    made = make_task(config(task, folder, **flags))
    made.encode(resolve_base(made.config.base))
    return made
