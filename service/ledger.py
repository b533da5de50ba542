"""The usage ledger: what was used, by tenant, adapter, version and day, added up in the database every second.

It is kept where the work is done: a token counts when it is generated, whether its client waits for it or not. The
step thread only adds numbers; a thread of the ledger's own writes. A process that is killed loses the last second.

A connection that breaks at a commit does not say whether it happened. So every sum has a number, which is written in
the same transaction: sent again, it is added only if the number is not there.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from adapters.adapter import Adapter
from adapters.database.database import Database, insert, now
from adapters.database.schema import usage, usage_writers
from adapters.errors import AdapterError
from service.counts import Counts
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sequence import Sequence
from service.ready import Ready
from service.settings import EVERY_TENANT

PERIOD_S = 1.0
REMEMBERED = timedelta(days=30)
"""How long it is known what a process has written: longer than any database is away."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """Who is charged, and for what. Without a digest it is the base; the tenant `*` is whoever needs no key."""

    tenant: str
    adapter: str
    digest: str


Gathered = dict[tuple[date, Account], Counts]


@dataclass(frozen=True, slots=True)
class _Sum:
    """What one process adds at once; ``number`` is its place among what that process adds."""

    writer: str
    number: int
    counts: Gathered


@dataclass(slots=True)
class _Open:
    """A request in the engine."""

    account: Account
    owed: set[int]
    prompts: dict[int, int]
    """Prompt tokens by the index of the answer that pays for them with its first token."""


class Ledger:
    """Adds up the work of one engine process.

    :meth:`open`, :meth:`note` and :meth:`close` are called by the step thread, the rest from anywhere.

    Args:
        database: Where the sums go.
        base: The base's id, charged for work without an adapter.
        resident: The adapters in host memory now.
        today: The day that is charged.
    """

    def __init__(
        self,
        database: Database,
        base: str,
        resident: Callable[[], Iterable[Adapter]],
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self._database = database
        self._base = base
        self._resident = resident
        self._today = today
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._counts: Gathered = {}
        self._writer = uuid.uuid4().hex
        self._written = 0
        self._unsure: _Sum | None = None
        """The sum of which it is not known whether it was written."""
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    # ── step thread ───────────────────────────────────────────────────────────────────────────────────────

    def open(self, ready: Ready) -> None:
        """A request entered the engine."""
        first = ready.sequences[0]
        account = self._account(first)
        # Of the answers to one prompt, the first pays for it.
        prompts = {
            sequence.index: sequence.prompt_tokens
            for sequence in ready.sequences
            if not sequence.classifies and sequence.index % ready.answers == 0
        }
        self._open[ready.request_id] = _Open(account, {sequence.index for sequence in ready.sequences}, prompts)
        self._charge(account, Counts(requests=1, cold_starts=int(ready.cold)))

    def note(self, events: Iterable[Event]) -> None:
        """A step happened."""
        for event in events:
            entry = self._open.get(event.request_id)
            if entry is None:
                continue
            match event:
                case TokenEvent():
                    prompt = entry.prompts.pop(event.index, 0)
                    self._charge(entry.account, Counts(prompt_tokens=prompt, generated_tokens=len(event.token_ids)))
                case ClassifiedEvent():
                    self._charge(entry.account, Counts(prompt_tokens=event.prompt_tokens, classifications=1))
            if isinstance(event, FinishedEvent | ClassifiedEvent | FailedEvent):
                entry.owed.discard(event.index)
                if not entry.owed:
                    del self._open[event.request_id]

    def close(self, request_id: str) -> None:
        """A request was given up; what was done for it is charged."""
        self._open.pop(request_id, None)

    # ── any thread ────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to write every second."""
        self._thread.start()

    def stop(self) -> None:
        """Write what there is, for the last time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Add what has gathered to the database; what cannot be written is kept for the next time."""
        self._charge_residents()
        try:
            self._write(self._unsure)
            self._write(self._gathered())
        except Exception as error:
            # Whatever it is, what was used is not lost for it.
            known = isinstance(error, AdapterError)
            logger.warning("usage cannot be written; it is kept and tried again: %s", error, exc_info=not known)

    def _write(self, pending: _Sum | None) -> None:
        if pending is not None:
            self._unsure = pending
            _write(self._database, pending)
            self._unsure, self._written = None, pending.number

    def _gathered(self) -> _Sum | None:
        with self._lock:
            counts, self._counts = self._counts, {}
        return _Sum(self._writer, self._written + 1, counts) if counts else None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.flush()

    def _charge_residents(self) -> None:
        now = time.monotonic()
        seconds, self._looked = now - self._looked, now
        for adapter in self._resident():
            account = Account(adapter.ref.partition("/")[0], adapter.ref, adapter.digest)
            self._charge(account, Counts(resident_byte_seconds=adapter.nbytes * seconds))

    def _charge(self, account: Account, counts: Counts) -> None:
        key = self._today(), account
        with self._lock:
            self._counts.setdefault(key, Counts()).add(counts)

    def _account(self, sequence: Sequence) -> Account:
        tenant, adapter = sequence.scope or EVERY_TENANT, sequence.adapter
        return Account(tenant, self._base, "") if adapter is None else Account(tenant, adapter.ref, adapter.digest)


def _write(database: Database, pending: _Sum) -> None:
    """Add a sum, unless it has been added."""
    with database.writing() as connection:
        if not _is_new(connection, pending):
            return
        statement = insert(connection, usage).values(_rows(pending.counts))
        sums = {field.name: usage.c[field.name] + statement.excluded[field.name] for field in fields(Counts)}
        key = [column.name for column in usage.primary_key]
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=sums))


def _is_new(connection: Connection, pending: _Sum) -> bool:
    """Note that a sum is added; False if that was noted before. Waits for a transaction that may still do it."""
    noted = {"written": pending.number, "at": now()}
    statement = insert(connection, usage_writers).values(id=pending.writer, **noted)
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_=noted, where=usage_writers.c.written < pending.number
    )
    if connection.execute(statement.returning(usage_writers.c.id)).first() is None:
        return False
    if pending.number == 1:
        connection.execute(usage_writers.delete().where(usage_writers.c.at < now() - REMEMBERED))
    return True


def _rows(counts: Mapping[tuple[date, Account], Counts]) -> list[dict[str, Any]]:
    return [
        {
            "day": day,
            "tenant": account.tenant,
            "adapter": account.adapter,
            "digest": account.digest,
            **dict(zip((field.name for field in fields(Counts)), astuple(used), strict=True)),
        }
        for (day, account), used in sorted(counts.items(), key=lambda item: (item[0][0], astuple(item[0][1])))
    ]
