"""Runs an engine until it is idle and sorts what it said."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.adapter import Adapter
from service.engine.engine import Engine
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence


@dataclass
class Outcome:
    """Everything said of one sequence."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprob_rows: list[Tensor] = field(default_factory=list)
    finished: FinishedEvent | None = None
    classified: ClassifiedEvent | None = None
    failed: FailedEvent | None = None

    @property
    def logprobs(self) -> Tensor:
        return torch.stack(self.logprob_rows)

    @property
    def probabilities(self) -> Tensor:
        assert self.classified is not None
        return torch.tensor(self.classified.values)

    def add(self, event: Event) -> None:
        assert self.finished is self.classified is self.failed is None, "an event followed the last one"
        match event:
            case TokenEvent():
                self.text += event.text
                self.tokens += event.token_ids
                for row in event.logprobs or ():
                    values = {alternative.token_id: alternative.logprob for alternative in row.top}
                    self.logprob_rows.append(torch.tensor([values[i] for i in sorted(values)]))
            case FinishedEvent():
                self.finished = event
            case ClassifiedEvent():
                self.classified = event
            case FailedEvent():
                self.failed = event


def generation(
    name: str, ids: list[int], adapter: Adapter | None = None, *, vocabulary: int | None = None, **params: object
) -> Sequence:
    """A greedy sequence of 8 tokens, unless told otherwise; with ``vocabulary`` it reports all log-probabilities."""
    sampling = SamplingParams(
        **({"max_tokens": 8, "temperature": 0.0, "logprobs": vocabulary, "ignore_eos": True} | params)
    )
    return Sequence(name, ids, adapter=adapter, sampling=sampling)


def text(name: str, ids: list[int], adapter: Adapter, *, index: int = 0) -> Sequence:
    """A text to classify."""
    return Sequence(name, ids, adapter=adapter, index=index)


def drain(engine: Engine, *sequences: Sequence) -> dict[str, Outcome]:
    """Submit sequences, step until idle, and check that nothing leaked."""
    for sequence in sequences:
        engine.submit(sequence)
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    for _ in range(10_000):
        if not engine.has_work():
            break
        for event in engine.step():
            outcomes[event.request_id].add(event)
    assert_idle(engine)
    return dict(outcomes)


def assert_idle(engine: Engine) -> None:
    """Everything came back: cache rows, pins, random streams, text buffers."""
    engine.check_integrity()
    stats = engine.stats()
    assert not engine.has_work()
    assert stats.pins == stats.running == stats.waiting == stats.random_streams == 0
    assert stats.kv_rows_free == stats.kv_rows_total
