"""llama.cpp's server, one adapter per request. It batches requests of one adapter, not those of different ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.base import BaseSource
from bench.http_load import Request
from bench.processes import ServerProcess
from bench.systems.gguf_files import GgufFiles


class LlamaServer(ServerProcess):
    """A server process with every adapter loaded and none applied.

    Args:
        binary: `llama-server`.
        model: The base as GGUF.
        adapters: The adapters as GGUF; a request names one by its place here.
        at_once: Requests that it may batch.
        context: Tokens that each may take.
        threads: For prompts and for answers.
    """

    name = "llama.cpp"

    def __init__(
        self, *, binary: Path, model: Path, adapters: Sequence[Path], at_once: int, context: int, threads: int
    ) -> None:
        fixed = ["--host", "127.0.0.1", "--no-ui", "--cont-batching", "--flash-attn", "auto", "--cache-ram", "0"]
        sizes = {
            "--model": model,
            "--threads": threads,
            "--threads-batch": threads,
            "--parallel": at_once,
            "--ctx-size": at_once * context,
        }
        arguments = [str(part) for pair in sizes.items() for part in pair]
        loras = [part for path in adapters for part in ("--lora", str(path))]
        super().__init__(
            lambda port: [
                str(binary), *arguments, *fixed, *loras, "--lora-init-without-apply", "--port", str(port)
            ],
            ready="/health",
        )  # fmt: skip

    @staticmethod
    def request(prompt: Sequence[int], adapter: int | None, new_tokens: int, **more: Any) -> Request:
        """A greedy completion of token ids; None asks the base, which takes a list: an empty one means all adapters."""
        lora = {"id": 0, "scale": 0.0} if adapter is None else {"id": adapter, "scale": 1.0}
        body = {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": [lora],
        }
        return Request("/completion", {**body, **more})

    @staticmethod
    def tokens(reply: Any) -> int:
        """How many tokens an answer has."""
        return int(reply["tokens_predicted"])

    def first_logprobs(self, prompt: Sequence[int], adapter: int | None) -> Request:
        """Ask for the likeliest first tokens; see :func:`read_logprobs`."""
        return self.request(prompt, adapter, 1, n_probs=10)

    @staticmethod
    def read_logprobs(reply: Any) -> dict[str, float]:
        """{token: log-probability} of the likeliest first tokens."""
        found = reply["completion_probabilities"][0]["top_logprobs"]
        return {entry["token"]: entry["logprob"] for entry in found}


def convert(base: BaseSource, adapters: Sequence[Path], folder: Path, dtype: str) -> tuple[Path, list[Path]]:
    """Write a base and adapters as GGUF, unless they are there.

    Raises:
        NotConvertibleError: The base is no Llama, or the package gguf is missing.
    """
    files = GgufFiles(base, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{base.fingerprint[:12]}-{dtype}.gguf"
    if not model.exists():
        files.write_base(model)
    written = []
    for source in adapters:
        path = folder / f"{base.fingerprint[:12]}-{source.parent.name}-{source.name}-{dtype}.gguf"
        written.append(path if path.exists() else files.write_adapter(source, path))
    return model, written
