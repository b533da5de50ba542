"""What became of the requests of a split, version by version, side by side.

A request is known from the moment that its version was chosen, as a `Part`; it is counted when it ends. The step thread
calls :meth:`Comparison.open`, :meth:`Comparison.note` and :meth:`Comparison.close`; the rest is for any thread.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from adapters.names import AdapterName
from adapters.splits import Split
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.errors import describe
from service.figures import Row, Sample

_OURS = 500
_UNSERVABLE = 422


class Pair:
    """What two versions answered to the same request, as far as it is there."""

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: Hashable | None = None

    def equal(self, answer: Hashable) -> bool | None:
        """Put in an answer; of the second one, say whether it equals the first."""
        if self._first is None:
            self._first = answer
            return None
        return self._first == answer


@dataclass(slots=True, eq=False)
class Part:
    """One request of a split under the version that was chosen for it."""

    split: Split
    digest: str
    shadow: bool = False
    pair: Pair | None = None
    """Where its answer is compared, if it has a shadow or is one, and answers can be compared at all."""
    labels: Callable[[tuple[float, ...]], Hashable] | None = None
    """What a text's probabilities say, for that."""
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Table:
    """The versions of a split under rules that were set at one moment."""

    set_at: datetime
    rows: dict[tuple[str, bool], Row] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A request in the engine."""

    part: Part
    owed: set[int]
    answers: int
    cold: bool
    said: defaultdict[int, list[Hashable]] = field(default_factory=lambda: defaultdict(list))
    """Tokens or labels by index, if they are compared."""
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)


class Comparison:
    """The figures of one engine process, for splits that are there; rules set anew begin with none."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._tables: dict[tuple[AdapterName, str], _Table] = {}
        self._lock = threading.Lock()
        self.dropped = 0
        """Shadows that were not run, of all splits."""

    # ── step thread ───────────────────────────────────────────────────────────────────────────────────────

    def open(self, request_id: str, part: Part, owed: Iterable[int], answers: int, *, cold: bool) -> None:
        """A request entered the engine, which owes sequences of these indices, so many to each of its prompts."""
        self._open[request_id] = _Open(part, set(owed), answers, cold)

    def note(self, events: Iterable[Event]) -> None:
        """A step happened."""
        if self._open:
            for event in events:
                self.take(event)

    def take(self, event: Event) -> None:
        """Something became of a sequence."""
        entry = self._open.get(event.request_id)
        if entry is None:
            return
        if isinstance(event, FailedEvent):
            del self._open[event.request_id]
            self._failed(entry, event.code)
            return
        _take(entry, event)
        if not entry.owed:
            del self._open[event.request_id]
            self._answered(entry)

    def close(self, request_id: str) -> None:
        """A request was given up by its client, if it is still here."""
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self.aborted(entry.part)

    def _answered(self, entry: _Open) -> None:
        part = entry.part
        equal = None if part.pair is None else part.pair.equal(_answer(entry))
        end = entry.last if entry.last is not None else time.monotonic()
        with self._lock:
            row = self._row(part)
            if row is None:
                return
            row.requests += 1
            row.finished += entry.finished
            row.prompt_tokens += entry.prompt_tokens
            row.generated_tokens += entry.generated_tokens
            ttft = None if entry.first is None else entry.first - part.began
            row.samples.append(Sample(end, end - part.began, ttft, cold=entry.cold))
            # Whichever of the two ends last, it is the shadow that is compared.
            if equal is not None and (told := self._shadow_row(part)) is not None:
                told.compared += 1
                told.equal += equal

    def _failed(self, entry: _Open, code: str) -> None:
        if entry.part.shadow and code == "deadline_exceeded":  # it is served last, and there was no time left
            self.drop(entry.part)
        else:
            self.failed(entry.part, code, _OURS)

    # ── any thread ────────────────────────────────────────────────────────────────────────────────────────

    def keep(self, splits: Iterable[Split]) -> None:
        """These are the splits that there are; what is known of others is forgotten."""
        with self._lock:
            before = self._tables
            self._tables = {}
            for split in splits:
                key = split.name, split.alias
                table = before.get(key)
                same = table is not None and table.set_at == split.set_at
                self._tables[key] = table if table is not None and same else _Table(split.set_at)

    def failed(self, part: Part, code: str, status: int) -> None:
        """A request failed; what only its client could have done better does not speak against the version."""
        now = time.monotonic()
        with self._lock:
            row = self._row(part)
            if row is None:
                return
            row.requests += 1
            row.errors[code] += 1
            if status >= _OURS or status == _UNSERVABLE:
                row.samples.append(Sample(now, now - part.began, failed=True))

    def refused(self, part: Part, error: Exception) -> None:
        """A request failed before it was in the engine."""
        detail = describe(error)
        self.failed(part, detail.code, detail.status)

    def aborted(self, part: Part) -> None:
        """A request was given up by its client."""
        with self._lock:
            row = self._row(part)
            if row is not None:
                row.requests += 1
                row.aborted += 1

    def drop(self, part: Part) -> None:
        """A shadow was not run."""
        with self._lock:
            self.dropped += 1
            row = self._row(part)
            if row is not None:
                row.dropped += 1

    def rows(self, split: Split) -> dict[tuple[str, bool], Row]:
        """A copy of the figures of a split: by digest, and whether it ran as a shadow."""
        with self._lock:
            table = self._tables.get((split.name, split.alias))
            if table is None or table.set_at != split.set_at:
                return {}
            return {key: row.copy() for key, row in table.rows.items()}

    def _row(self, part: Part) -> Row | None:
        """Where a request is counted; None if its rules are no more."""
        return self._row_of(part.split, part.digest, shadow=part.shadow)

    def _shadow_row(self, part: Part) -> Row | None:
        shadow = part.split.rules.shadow
        return None if shadow is None else self._row_of(part.split, shadow, shadow=True)

    def _row_of(self, split: Split, digest: str, *, shadow: bool) -> Row | None:
        table = self._tables.get((split.name, split.alias))
        if table is None or table.set_at != split.set_at:
            return None
        return table.rows.setdefault((digest, shadow), Row())


def _take(entry: _Open, event: TokenEvent | FinishedEvent | ClassifiedEvent) -> None:
    compared = entry.part.pair is not None
    if isinstance(event, TokenEvent):
        entry.first = event.at if entry.first is None else entry.first
        entry.last = event.at
        entry.generated_tokens += len(event.token_ids)
        if compared:
            entry.said[event.index] += event.token_ids
        return
    entry.owed.discard(event.index)
    if event.index % entry.answers == 0:  # a prompt counts once, however many answers it gets
        entry.prompt_tokens += event.prompt_tokens
    if isinstance(event, FinishedEvent):
        entry.finished[event.reason] += 1
        return
    entry.first = event.at if entry.first is None else entry.first
    entry.last = event.at
    entry.finished["classified"] += 1
    if compared and entry.part.labels is not None:
        entry.said[event.index].append(entry.part.labels(event.values))


def _answer(entry: _Open) -> Hashable:
    return tuple((index, tuple(said)) for index, said in sorted(entry.said.items()))
