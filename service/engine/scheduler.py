"""Decides what the next step computes."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.engine.kv_cache import Cache, Content
from service.engine.sequence import Sequence
from service.engine.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Work:
    """What one sequence computes in a step: its next ``tokens`` tokens."""

    sequence: Sequence
    tokens: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence that enters this step; its adapter must be copied into the slot first if ``load``."""

    sequence: Sequence
    load: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: who enters, and who computes what, ordered by adapter slot."""

    admitted: tuple[Admission, ...]
    work: tuple[Work, ...]


class Scheduler:
    """First come, first served, under a token budget.

    Decode rows come first, so a running answer is never stalled by a long prompt; then the prompts in progress, then
    new arrivals. An arrival that finds every adapter slot pinned is passed over, and those behind it whose adapters
    are resident go ahead. But not for ever: once it has waited ``patience`` seconds, only the bare base, which needs no
    slot, overtakes it.
    """

    def __init__(
        self,
        *,
        slots: SlotTable,
        cache: Cache | None,
        max_step_tokens: int,
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.cache = cache
        self.max_step_tokens = max_step_tokens
        self.patience = patience
        self.clock = clock
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.running)

    def schedule(self) -> Plan:
        """Admit what fits and share out the step's tokens."""
        decoding = [Work(sequence, 1) for sequence in self.running if sequence.decoding]
        budget = self.max_step_tokens - len(decoding)
        prompts: list[Work] = []
        for sequence in self.running:
            if not sequence.decoding and budget > 0:
                prompts.append(Work(sequence, min(sequence.pending, budget)))
                budget -= prompts[-1].tokens
        admitted = self._admit_waiting(prompts, budget)
        work = sorted((*decoding, *prompts), key=lambda item: item.sequence.slot)
        return Plan(tuple(admitted), tuple(work))

    def _admit_waiting(self, prompts: list[Work], budget: int) -> list[Admission]:
        """Take waiting sequences in order while there is room, adding their work to ``prompts``."""
        admitted: list[Admission] = []
        passed_over: list[Sequence] = []
        starved = full = False
        while budget > 0 and self.waiting:
            sequence = self.waiting[0]
            if sequence.classifies and not self._text_fits(sequence, prompts):
                break
            self.waiting.popleft()
            waits = (starved and sequence.adapter is not None) or (full and not sequence.classifies)
            admission = None if waits else self._admit(sequence)
            if admission is None:
                passed_over.append(sequence)
                # A long one would wait for ever if shorter ones took the room that it waits for.
                full = full or self._lacks_row(sequence)
                starved = starved or self._starved(sequence)
                continue
            admitted.append(admission)
            tokens = sequence.pending if sequence.classifies else min(sequence.pending, budget)
            prompts.append(Work(sequence, tokens))
            budget -= tokens
        self.waiting.extendleft(reversed(passed_over))
        return admitted

    def _text_fits(self, sequence: Sequence, prompts: list[Work]) -> bool:
        """Whether a text, which is computed whole, may join a step.

        Running answers do not count against it, or a text as long as the budget would wait until there are none; and
        beside no other prompt it goes however long it is.
        """
        return not prompts or sequence.pending <= self.max_step_tokens - sum(item.tokens for item in prompts)

    def _admit(self, sequence: Sequence) -> Admission | None:
        """Give a sequence its adapter slot and cache row; None, with nothing taken, where either is missing."""
        if self._lacks_row(sequence):
            return None
        load = False
        if sequence.adapter is not None:
            load = not self.slots.resident(sequence.adapter.digest)
            slot = self.slots.acquire(sequence.adapter.digest)
            if slot is None:
                return None
            sequence.slot = slot
            sequence.tier = "host" if load else "device"
        if not sequence.classifies:
            assert self.cache is not None, "an encoder does not generate"
            # The last token is computed anyway: it has to say what comes next.
            allocation = self.cache.allocate(
                sequence.wanted, len(sequence.tokens) - 1, self._contents(), tokens=_most_tokens(sequence)
            )
            assert allocation is not None, "there was a free row"
            sequence.row, sequence.computed = allocation.row, allocation.reused
            sequence.reused = allocation.reused
        sequence.admitted_at = self.clock()
        self.running.append(sequence)
        return Admission(sequence, load)

    def _contents(self) -> Iterable[tuple[int, Content]]:
        """The rows in use, with what has been computed in them."""
        return [(sequence.row, sequence.content) for sequence in self.running if sequence.row is not None]

    def _lacks_row(self, sequence: Sequence) -> bool:
        return not sequence.classifies and (self.cache is None or not self.cache.fits(_most_tokens(sequence)))

    def _starved(self, sequence: Sequence) -> bool:
        """Whether a sequence has waited so long for an adapter slot that no other adapter may overtake it."""
        return not self._lacks_row(sequence) and self.clock() - sequence.arrived_at > self.patience

    def finish(self, sequence: Sequence, *, scrub: bool = False) -> None:
        """Give back everything a running sequence holds.

        ``scrub`` clears what it wrote to its cache row: a masked NaN is still a NaN to whoever gets the row next.
        """
        self.running.remove(sequence)
        if sequence.adapter is not None:
            self.slots.release(sequence.adapter.digest)
        if sequence.row is not None:
            assert self.cache is not None
            if scrub:
                self.cache.release(sequence.row, scrub=len(sequence.tokens))
            else:
                self.cache.release(sequence.row, sequence.content)
            sequence.row = None

    def remove(self, unwanted: Callable[[Sequence], bool]) -> list[Sequence]:
        """Drop every sequence, waiting or running, that ``unwanted`` picks; return them."""
        dropped = [sequence for sequence in self._all() if unwanted(sequence)]
        if dropped:
            self.waiting = deque(sequence for sequence in self.waiting if not unwanted(sequence))
            for sequence in [sequence for sequence in self.running if unwanted(sequence)]:
                self.finish(sequence, scrub=True)  # cut off in the middle, nobody has looked whether it is finite
        return dropped

    def _all(self) -> Iterable[Sequence]:
        yield from self.waiting
        yield from self.running

    def check_integrity(self) -> None:
        """Assert that rows and pins are exactly those of the running sequences."""
        self.slots.check_integrity()
        held = [sequence.row for sequence in self.running if sequence.row is not None]
        pins = sum(sequence.adapter is not None for sequence in self.running)
        assert self.slots.pins == pins, f"{self.slots.pins} pins for {pins} running sequences with adapters"
        if self.cache is not None:
            self.cache.check_integrity()
            assert len(held) == len(set(held)) == self.cache.rows - self.cache.free, "KV rows leaked"


def _most_tokens(sequence: Sequence) -> int:
    """How many tokens a sequence that generates may come to."""
    return sequence.prompt_tokens + sequence.params.max_tokens
