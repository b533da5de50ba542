"""Tenora's engine, called directly: what it can do without HTTP and without a second process."""

import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

from adapters.adapter import Adapter, load_adapter
from adapters.base import resolve_base
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.events import ClassifiedEvent, FailedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence


class TenoraEngine:
    """An engine with adapters already read.

    Args:
        base: Folder of the base.
        adapters: Folders of the adapters; a request names one by its place here.
        config: Fields of the engine's configuration.
    """

    def __init__(self, *, base: str, adapters: Many[Path] = (), **config: Any) -> None:
        self.source = resolve_base(base)
        self.engine = Engine(self.source, EngineConfig(**config))
        self.adapters = [load_adapter(folder, self.source, ref=f"bench/{folder.name}") for folder in adapters]
        self._requests = 0

    def generate(
        self, prompts: Many[Many[int]], which: Many[int | None], new_tokens: int | Many[int]
    ) -> list[list[int]]:
        """Serve all prompts at once, greedily; returns their tokens. Answers may be of different lengths."""
        counts = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        sequences = [self._submit(*row) for row in zip(prompts, which, counts, strict=True)]
        while self.engine.has_work():
            check(self.engine.step())
        return [sequence.completion for sequence in sequences]

    def throughput(self, prompts: Many[Many[int]], which: Many[int | None], new_tokens: int) -> int:
        """The same, returning how many tokens there were."""
        return sum(len(tokens) for tokens in self.generate(prompts, which, new_tokens))

    def decode_ms(self, prompts: Many[Many[int]], which: Many[int | None], new_tokens: int) -> list[float]:
        """Milliseconds of each step in which every sequence decodes."""
        sequences = [self._submit(ids, index, new_tokens) for ids, index in zip(prompts, which, strict=True)]
        taken = []
        while self.engine.has_work():
            decoding = all(sequence.decoding for sequence in sequences)
            start = time.perf_counter()
            check(self.engine.step())
            if decoding:
                taken.append((time.perf_counter() - start) * 1e3)
        return taken

    def classify(self, texts: Many[Many[int]], which: Many[int]) -> list[tuple[float, ...]]:
        """Classify all texts at once; returns the probabilities of each text's labels."""
        for number, (ids, index) in enumerate(zip(texts, which, strict=True)):
            self.engine.submit(Sequence("texts", ids, index=number, adapter=self.adapters[index]))
        found: dict[int, tuple[float, ...]] = {}
        while self.engine.has_work():
            for event in check(self.engine.step()):
                if isinstance(event, ClassifiedEvent):
                    found[event.index] = event.values
        return [found[number] for number in range(len(texts))]

    def classified(self, texts: Many[Many[int]], which: Many[int]) -> int:
        """The same, returning how many texts there were."""
        return len(self.classify(texts, which))

    def adapter_bytes(self) -> int:
        """Bytes of the adapters' matrices in the type that the engine computes in."""
        width = self.engine.base.model.dtype.itemsize
        pairs = [pair for adapter in self.adapters for pair in adapter.weights.pairs.values()]
        return sum(pair.a.numel() + pair.b.numel() for pair in pairs) * width

    def _submit(self, ids: Many[int], index: int | None, new_tokens: int) -> Sequence:
        return self.submit(ids, None if index is None else self.adapters[index], new_tokens)

    def submit(self, ids: Many[int], adapter: Adapter | None, new_tokens: int) -> Sequence:
        """Queue one greedy sequence."""
        self._requests += 1
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        sequence = Sequence(str(self._requests), ids, adapter=adapter, sampling=sampling)
        self.engine.submit(sequence)
        return sequence


def check(events: Any) -> Any:
    """The events of a step, none of which may be a failure."""
    for event in events:
        if isinstance(event, FailedEvent):
            raise RuntimeError(event.message)
    return events


def tokens_in(events: Any) -> int:
    """Tokens that a step generated."""
    return sum(len(event.token_ids) for event in events if isinstance(event, TokenEvent))
