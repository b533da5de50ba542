"""Tenora as its users have it: `tenora serve`, over HTTP."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapters.base import BaseSource
from adapters.names import AdapterName
from adapters.store import Store
from bench.http_load import Request
from bench.processes import ServerProcess

TENANT = "bench"


class TenoraServer(ServerProcess):
    """A server process over a store.

    Args:
        base: What `--base` takes.
        store: The adapters.
        threads: Of the engine.
        settings: Any other setting, by the name of its variable without the prefix.
    """

    name = "Tenora"

    def __init__(self, *, base: str, base_id: str, store: Path, threads: int, **settings: Any) -> None:
        self._base_id = base_id
        values = {"base": base, "store": str(store), "threads": threads, "log_level": "error", **settings}
        environment = {f"TENORA_{name.upper()}": _text(value) for name, value in values.items()}
        environment["OMP_NUM_THREADS"] = str(threads)
        super().__init__(
            lambda port: [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
            ready="/readyz",
            environment=environment,
        )

    def request(self, prompt: Sequence[int], adapter: str | None, new_tokens: int, **more: Any) -> Request:
        """A greedy completion of token ids; None asks the base."""
        model = self._base_id if adapter is None else f"{TENANT}/{adapter}"
        body = {"model": model, "prompt": list(prompt), "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        return Request("/v1/completions", {**body, **more})

    @staticmethod
    def tokens(reply: Any) -> int:
        """How many tokens an answer has."""
        return int(reply["usage"]["completion_tokens"])

    def first_logprobs(self, prompt: Sequence[int], adapter: str | None) -> Request:
        """Ask for the likeliest first tokens; see :func:`read_logprobs`."""
        return self.request(prompt, adapter, 1, logprobs=10)

    @staticmethod
    def read_logprobs(reply: Any) -> dict[str, float]:
        """{token: log-probability} of the likeliest first tokens."""
        return dict(reply["choices"][0]["logprobs"]["top_logprobs"][0])


def publish(store: Path, base: BaseSource, folders: Iterable[Path]) -> list[str]:
    """Publish adapters under the names of their folders, unless they are there; returns the names."""
    target, names = Store(store), []
    known = set(target.names(TENANT)) if (store / TENANT).is_dir() else set()
    for folder in folders:
        name = AdapterName(TENANT, folder.name)
        if name not in known:
            target.publish(folder, name, base)
        names.append(folder.name)
    return names


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
