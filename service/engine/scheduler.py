"""Decides what the next step computes."""

import time
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain, count
from math import ceil

from service.engine.fairness import TokenCounter
from service.engine.kv_cache import Cache, Content
from service.engine.sequence import Sequence
from service.engine.slots import SlotTable

PART_BESIDE_OTHERS = 0.5
"""The part of a step's tokens that a tenant's prompts get while another is there that was served less. A step takes as
long as its prompts, and whoever comes meanwhile waits for its end."""


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


@dataclass(slots=True)
class _Step:
    """A plan in the making."""

    decoding: list[Work]
    lines: dict[str, deque[Sequence]]
    """By tenant, what may still join: its prompts in progress, then what waits, in order."""
    budget: int
    least_served: str
    """The tenant, among all that run or wait."""
    prompts: list[Work] = field(default_factory=list)
    admitted: list[Admission] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """Tokens of the budget by tenant."""
    giving_way: set[str] = field(default_factory=set)
    """Tenants that leave the step to others' prompts."""

    def keep(self, wanted: Callable[[Sequence], bool]) -> None:
        """Leave of those that wait only the wanted ones in line."""
        for line in self.lines.values():
            kept = [sequence for sequence in line if sequence.row is not None or wanted(sequence)]
            line.clear()
            line.extend(kept)


class Scheduler:
    """Fair between tenants, first come first served within one, under a token budget.

    Every running answer gets its token first, so none is ever stalled by a long prompt. The rest of the budget goes to
    one sequence after the other, each time to the tenant that :class:`TokenCounter` says was served least (prompt
    tokens computed and tokens generated, by its share): to its prompts in progress, then to what it has waiting, by
    priority and then as it came; while one is there that was served less, a tenant's prompts get half of the budget at
    most. Who splits its work into many requests, adapters or choices gains nothing, and a priority never reaches beyond
    its tenant. An arrival needs a row of the cache, if it generates, and an adapter slot. A tenant that finds none and
    wants no more than its share of them, or holds clearly less, gets one at once from the most served of those that
    hold more than theirs: the answer that is cheapest to compute again waits again, with all that it has said, before
    whatever came later of its tenant and priority. Who would have to give up a row to a tenant also gives way to
    the ends of its prompts: it is left out of their step, answers and prompts, though never out of two in a row, so
    that a first token does not wait for tokens that may as well come a step later. Any other arrival that finds no row
    stops all arrivals behind it that need one, or long ones would wait for ever; one that finds every adapter slot
    pinned is passed over, until it has waited ``patience`` seconds: from then on only the bare base, which needs no
    slot, overtakes it. With one tenant all this is first come, first served.

    Args:
        slots: Adapter slots.
        cache: Rows for keys and values; None for an encoder.
        max_step_tokens: Tokens of a step, at most.
        patience: Seconds.
        give_way: Whether anybody is left out of a step: of no use where few rows take as long as many.
        clock: Seconds.
    """

    def __init__(
        self,
        *,
        slots: SlotTable,
        cache: Cache | None,
        max_step_tokens: int,
        patience: float = 1.0,
        give_way: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.cache = cache
        self.max_step_tokens = max_step_tokens
        self.patience = patience
        self.give_way = give_way
        self.clock = clock
        self.running: list[Sequence] = []
        self.served = TokenCounter()
        self.preemptions = 0
        self._queues: defaultdict[str, list[Sequence]] = defaultdict(list)
        """By tenant, what waits, in order; tenants without any are left out."""
        self._places = count()
        self._gave_way: set[str] = set()
        """Tenants that were left out of the last step."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.place = next(self._places)
        self._queue(sequence)

    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queues or self.running)

    @property
    def waiting(self) -> list[Sequence]:
        """All sequences that wait, tenant by tenant."""
        return list(chain.from_iterable(self._queues.values()))

    @property
    def waiting_by_tenant(self) -> dict[str, int]:
        """How many sequences of each tenant wait."""
        return {tenant: len(queue) for tenant, queue in self._queues.items()}

    def schedule(self) -> Plan:
        """Admit what fits and share out the step's tokens."""
        decoding = [Work(sequence, 1) for sequence in self.running if _decodes(sequence)]
        for item in decoding:
            self.served.charge(item.sequence.scope, generated=1)
        step = _Step(decoding, self._lines(), self.max_step_tokens - len(decoding), self._least_served())
        self._share_out(step)
        self._gave_way = step.giving_way
        work = sorted((*step.decoding, *step.prompts), key=lambda item: item.sequence.slot)
        return Plan(tuple(step.admitted), tuple(work))

    def _least_served(self) -> str:
        """The tenant that was served least of those that run or wait; of several alike one that has nothing running."""
        running = {sequence.scope for sequence in self.running}
        present = {*self._queues, *running}
        return min(present, key=lambda tenant: (self.served[tenant], tenant in running, tenant), default="")

    def _lines(self) -> dict[str, deque[Sequence]]:
        lines: defaultdict[str, deque[Sequence]] = defaultdict(deque)
        for sequence in self.running:
            if not _decodes(sequence):
                lines[sequence.scope].append(sequence)
        for tenant, queue in self._queues.items():
            lines[tenant].extend(queue)
        return lines

    def _share_out(self, step: _Step) -> None:
        """Give the step's tokens to one sequence after the other while there are any, least served tenants first."""
        turns = [self._turn(tenant, line[0]) for tenant, line in step.lines.items()]
        heapify(turns)
        while step.budget > 0 and turns:
            tenant = heappop(turns)[-1]
            line = step.lines[tenant]
            if line and self._take_turn(line, step) and line:
                heappush(turns, self._turn(tenant, line[0]))

    def _turn(self, tenant: str, following: Sequence) -> tuple[float, bool, int, str]:
        """When it is a tenant's turn; of several that were served alike, who waits goes before who is being served."""
        return self.served[tenant], following.row is not None, following.place, tenant

    def _take_turn(self, line: deque[Sequence], step: _Step) -> bool:
        """Let the first of a tenant's line join the step, if it can; whether the tenant gets further turns."""
        sequence = line[0]
        waits = sequence.row is None
        allowed = self._allowed(sequence, step)
        if not allowed or (waits and sequence.classifies and not self._text_fits(sequence, allowed, step)):
            return False
        line.popleft()
        if waits and not self._enter(sequence, step):
            return True
        tokens = sequence.pending if sequence.classifies else min(sequence.pending, allowed, step.budget)
        step.prompts.append(Work(sequence, tokens))
        step.budget -= tokens
        step.taken[sequence.scope] += tokens
        ends = tokens == sequence.pending
        if ends:
            self._make_way(sequence.scope, step)
        self.served.charge(sequence.scope, prompt=tokens, generated=int(ends and not sequence.classifies))
        return True

    def _allowed(self, sequence: Sequence, step: _Step) -> int:
        """Tokens that a sequence's tenant may still have in a step: beside one that was served less only a part."""
        if sequence.scope in step.giving_way:
            return 0
        if sequence.scope == step.least_served:
            return self.max_step_tokens
        return max(0, ceil(PART_BESIDE_OTHERS * self.max_step_tokens) - step.taken[sequence.scope])

    def _make_way(self, tenant: str, step: _Step) -> None:
        """Leave who owes a tenant a row out of the step that ends a prompt of that tenant; never twice in a row."""
        if not self.give_way:
            return
        held = Counter(sequence.scope for sequence in self.running if sequence.row is not None)
        owing = self.served.owing(tenant, held, self._rows)
        step.giving_way.update(name for name in owing if name not in self._gave_way and name not in step.taken)
        self._put_off(step, lambda sequence: sequence.scope in step.giving_way)

    def _put_off(self, step: _Step, which: Callable[[Sequence], bool]) -> None:
        """Take running answers out of a step: their next tokens have to wait."""
        later = [item for item in step.decoding if which(item.sequence)]
        step.decoding = [item for item in step.decoding if not which(item.sequence)]
        step.budget += len(later)
        for item in later:
            self.served.charge(item.sequence.scope, generated=-1)

    def _text_fits(self, sequence: Sequence, allowed: int, step: _Step) -> bool:
        """Whether a text, which is computed whole, may join a step.

        Running answers do not count against it, or a text as long as the budget would wait until there are none; and
        beside no other prompt it goes however long it is, as does a tenant's first beside those of others, if there is
        room.
        """
        if sequence.pending > self.max_step_tokens - sum(item.tokens for item in step.prompts):
            return not step.prompts
        return sequence.pending <= allowed or not step.taken[sequence.scope]

    def _enter(self, sequence: Sequence, step: _Step) -> bool:
        """Admit a waiting sequence; where that cannot be, stop those behind it that may not overtake it."""
        self._make_room(sequence, step)
        admission = self._admit(sequence)
        if admission is not None:
            step.admitted.append(admission)
        elif self._lacks_row(sequence):
            # A long one would wait for ever if shorter ones took the room that it waits for.
            step.keep(lambda other: other.classifies)
        elif self.clock() - sequence.arrived_at > self.patience:
            step.keep(lambda other: other.adapter is None)
        return admission is not None

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
        if not sequence.classifies:
            assert self.cache is not None, "an encoder does not generate"
            # The last token is computed anyway: it has to say what comes next.
            allocation = self.cache.allocate(
                sequence.wanted, len(sequence.tokens) - 1, self._contents(), tokens=_most_tokens(sequence)
            )
            assert allocation is not None, "there was a free row"
            sequence.row, sequence.computed = allocation.row, allocation.reused
        if not sequence.preempted:
            sequence.admitted_at, sequence.reused = self.clock(), sequence.computed
            if sequence.adapter is not None:
                sequence.tier = "host" if load else "device"
        self._dequeue(sequence)
        self.running.append(sequence)
        return Admission(sequence, load)

    # ── room from tenants that hold more than their share ─────────────────────────────────────────────────

    def _make_room(self, sequence: Sequence, step: _Step) -> None:
        """Take what a sequence lacks, an adapter slot or a row, from a tenant that owes it one."""
        if sequence.adapter is not None and not self._has_slot(sequence.adapter.digest):
            pinned: defaultdict[str, list[Sequence]] = defaultdict(list)
            for other in self.running:
                if other.adapter is not None:
                    pinned[other.adapter.digest].append(other)
            if not self._take_back(sequence.scope, pinned.values(), self.slots.slots, step):
                return
        while self._lacks_row(sequence):
            holders = [[other] for other in self.running if other.row is not None]
            if not self._take_back(sequence.scope, holders, self._rows, step):
                return

    @property
    def _rows(self) -> int:
        return self.cache.rows if self.cache is not None else 0

    def _has_slot(self, digest: str) -> bool:
        pinned = {sequence.adapter.digest for sequence in self.running if sequence.adapter is not None}
        return self.slots.resident(digest) or len(pinned) < self.slots.slots

    def _take_back(self, tenant: str, places: Collection[list[Sequence]], most: int, step: _Step) -> bool:
        """Free one place for a tenant, if another owes it one: the cheapest to compute again.

        Args:
            tenant: Who wants a place.
            places: The sequences that hold each place.
            most: How many places there are.
            step: What is planned stays so, but for the next token of an answer that is stopped.
        """
        held = Counter(name for place in places for name in {sequence.scope for sequence in place})
        planned = {item.sequence.key for item in step.prompts}
        for name in self.served.owing(tenant, held, most):
            own = [
                place
                for place in places
                if all(sequence.scope == name and sequence.key not in planned for sequence in place)
            ]
            if own:
                for sequence in min(reversed(own), key=lambda place: sum(sequence.computed for sequence in place)):
                    self._preempt(sequence, step)
                return True
        return False

    def _preempt(self, sequence: Sequence, step: _Step) -> None:
        """Have a running sequence wait again; what it has said so far it will read like a prompt."""
        self._put_off(step, lambda other: other is sequence)
        self.finish(sequence, scrub=not sequence.decoding)  # nobody has looked yet whether half a prompt is finite
        sequence.computed = sequence.slot = 0
        sequence.preempted += 1
        self.preemptions += 1
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        insort(self._queues[sequence.scope], sequence, key=_order)
        self.served.arrive(sequence.scope, sequence.share)

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.scope]
        del queue[bisect_left(queue, sequence.order, key=_order)]
        if not queue:
            del self._queues[sequence.scope]
        self.served.leave(sequence.scope)

    def _contents(self) -> Iterable[tuple[int, Content]]:
        """The rows in use, with what has been computed in them."""
        return [(sequence.row, sequence.content) for sequence in self.running if sequence.row is not None]

    def _lacks_row(self, sequence: Sequence) -> bool:
        return not sequence.classifies and (self.cache is None or not self.cache.fits(_most_tokens(sequence)))

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
        waiting = [sequence for sequence in self.waiting if unwanted(sequence)]
        running = [sequence for sequence in self.running if unwanted(sequence)]
        for sequence in waiting:
            self._dequeue(sequence)
        for sequence in running:
            self.finish(sequence, scrub=True)  # cut off in the middle, nobody has looked whether it is finite
        return waiting + running

    def check_integrity(self) -> None:
        """Assert that rows and pins are exactly those of the running sequences, and queues in order."""
        self.served.check_integrity(self.waiting_by_tenant)
        for tenant, queue in self._queues.items():
            assert queue == sorted(queue, key=_order), f"the queue of {tenant!r} is out of order"
            assert all(sequence.scope == tenant and sequence.row is None for sequence in queue), "a row waits"
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


def _decodes(sequence: Sequence) -> bool:
    """Whether a running sequence generates: neither its prompt nor an answer that had to wait is left to be read."""
    return sequence.decoding and sequence.pending == 1


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
