"""Objects in processes of their own, so that one system's threads, caches and mistakes are not another's."""

import contextlib
import importlib
import multiprocessing
import os
import warnings
from multiprocessing.connection import Connection
from typing import Any, Self


class RemoteError(RuntimeError):
    """The object raised, or its process died; the message is what it said."""


class Remote:
    """An instance of a class, made and called in a fresh process.

    remote = Remote("bench.systems.peft_model:PeftSystem", threads=2, base=…)
    remote.call("mixed", prompts, which, 48)

    It is being made when the constructor returns; several can so be made at the same time.
    """

    def __init__(self, target: str, *, threads: int, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_live, args=(child, target, threads, options), daemon=True)
        self._process.start()
        child.close()
        self._name = target.rpartition(":")[2]
        self._made = False

    def wait(self) -> None:
        """Wait until the object is there."""
        if not self._made:
            self._receive()
            self._made = True

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method and return what it returns."""
        self.wait()
        try:
            self._pipe.send((method, arguments, options))
        except OSError as error:
            raise self._dead() from error
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            failed, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if failed:
            raise RemoteError(value)
        return value

    def _dead(self) -> RemoteError:
        self._process.join(5)
        return RemoteError(f"the process of {self._name} has died (exit code {self._process.exitcode})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _live(pipe: Connection, target: str, threads: int, options: dict[str, Any]) -> None:
    """Make the object, then answer calls until nobody listens any more."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    module, _, name = target.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)(**options)
    except Exception as error:
        pipe.send((True, _sentence(error)))
        return
    with contextlib.suppress(EOFError, OSError):  # nobody listens any more
        pipe.send((False, None))
        while True:
            method, arguments, keywords = pipe.recv()
            pipe.send(_answer(made, method, arguments, keywords))


def _answer(made: Any, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[bool, Any]:
    """(whether it failed, what it returned or what went wrong)."""
    try:
        return False, getattr(made, method)(*arguments, **keywords)
    except Exception as error:
        return True, _sentence(error)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
