"""A real server whose engine can be told to be slow, to break and to die. Run as a module, configured by FAULTY_*.

Prompts are token ids here: a sequence that holds POISON makes the step it is in raise.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from service.api import EngineAPI
from service.server import TenoraServer
from service.settings import load_settings
from service.spec import TenoraSpec

POISON = 250


class FaultyEngine:
    """The real engine behind a pause per step and a trap."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._pause = float(os.environ.get("FAULTY_PAUSE_S", "0"))
        self._poisoned = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, sequence: Any) -> None:
        self._poisoned |= POISON in sequence.tokens
        self._inner.submit(sequence)

    def step(self) -> Any:
        time.sleep(self._pause)
        if self._poisoned:
            raise RuntimeError("poisoned step")
        return self._inner.step()


class FaultyAPI(EngineAPI):
    def make_engine(self, base: Any) -> Any:
        marker = os.environ.get("FAULTY_SETUP")
        if marker == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if marker == "slow":
            Path(os.environ["FAULTY_MARKER"]).write_text(str(os.getpid()))
            time.sleep(600)
        return FaultyEngine(super().make_engine(base))


if __name__ == "__main__":
    settings = load_settings()
    TenoraServer(settings, FaultyAPI(settings, TenoraSpec())).run()
