"""What all sections share: the options, the model and adapters on disk, one server, and where results go."""

import contextlib
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from adapters.base import BaseSource, resolve_base
from adapters.manifest import MANIFEST_FILE
from bench.report import Report
from bench.systems.tenora_server import TenoraServer, publish

REQUEST_TIMEOUT_S = 600
"""Longer than the service's own, for machines that are slower than the one that it was chosen for."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    shape: str
    quick: bool
    rounds: int
    threads: int
    dtype: str
    cache: Path
    llama_server: Path | None
    at_once: int = 16
    rank: int = 16
    prompt_tokens: int = 64
    new_tokens: int = 48

    def workload(self) -> dict[str, Any]:
        """What goes into the results."""
        return {
            "shape": self.shape if not Path(self.shape).is_dir() else Path(self.shape).name,
            "dtype": self.dtype,
            "at_once": self.at_once,
            "rank": self.rank,
            "targets": "all linears",
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "sampling": "greedy, end of text ignored",
            "rounds": self.rounds,
            "quick": self.quick,
        }


class Bench:
    """Handed to every section."""

    def __init__(self, options: Options, report: Report) -> None:
        self.options = options
        self.report = report
        self.section = ""
        self._began = time.perf_counter()
        self._open = contextlib.ExitStack()

    def say(self, text: str) -> None:
        """Tell the person who waits what is going on."""
        sys.stderr.write(f"[{time.perf_counter() - self._began:5.0f} s] {self.section}: {text}\n")
        sys.stderr.flush()

    @cached_property
    def base(self) -> BaseSource:
        """The base that the options name."""
        return self.model(self.options.shape)

    def model(self, shape: str) -> BaseSource:
        """A base by its shape, made if it is not in the cache; or an embedded one, or a folder."""
        from bench.models import SHAPES, make_model

        if shape not in SHAPES:
            return resolve_base(shape)
        folder = self.options.cache / "models" / shape
        if not folder.is_dir():
            self.say(f"making a random model of the shape {shape}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_model(SHAPES[shape], folder)
        return resolve_base(str(folder))

    def adapters(
        self,
        count: int,
        *,
        base: BaseSource | None = None,
        kind: str = "a",
        rank: int | None = None,
        num_labels: int | None = None,
        targets: str | list[str] = "all-linear",
        first: int = 0,
    ) -> list[Path]:
        """Folders of random adapters for a base, made if they are not in the cache.

        Args:
            count: How many.
            base: Another base than the options'.
            kind: What their names begin with; adapters of another kind are other adapters.
            rank: Another rank than the options'.
            num_labels: Makes them classify.
            targets: Linears that they change.
            first: Number of the first one.
        """
        from bench.random_adapters import peft_template, write_missing

        base, rank = base or self.base, rank or self.options.rank
        root = self.options.cache / "adapters" / base.fingerprint[:12] / f"rank{rank}"
        folders = [root / f"{kind}{number}" for number in range(first, first + count)]
        if all((folder / MANIFEST_FILE).exists() for folder in folders):
            return folders
        self.say(f"making {count} random adapters of rank {rank}")
        template = peft_template(base, rank=rank, num_labels=num_labels, targets=targets)
        return write_missing(base, template, folders, first=first)

    def store(self, folders: list[Path], name: str = "store") -> tuple[Path, list[str]]:
        """A store that serves these adapters, and their names in it."""
        store = self.options.cache / "stores" / self.base.fingerprint[:12] / f"{name}-rank{self.options.rank}"
        return store, publish(store, self.base, folders)

    def start_server(self, store: Path, **settings: Any) -> TenoraServer:
        """A server of Tenora's over a store; whoever asked for it closes it."""
        options = self.options
        self.say("starting tenora serve")
        given = {**self.engine_config, "request_timeout": REQUEST_TIMEOUT_S, **settings}
        return TenoraServer(
            base=str(self.base.path), base_id=self.base.id, store=store, threads=options.threads, **given
        )

    @cached_property
    def server(self) -> TenoraServer:
        """The server that sections share, over every adapter of the standard case."""
        folders = self.adapters(self.options.at_once)
        store, _ = self.store(folders)
        imports = self.options.cache / "adapters"
        return self._open.enter_context(self.start_server(store, adapter_folders=[str(imports)]))

    @property
    def engine_config(self) -> dict[str, Any]:
        """The same sizes as the server's, for an engine that is called directly."""
        options = self.options
        return {
            "device": "cpu",  # as the rivals
            "dtype": options.dtype,
            "max_running": options.at_once,
            "adapter_slots": options.at_once,
        }

    def close(self) -> None:
        """End what was started."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
