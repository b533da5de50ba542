"""The life of the engine process: messages come in, steps are taken, events go out.

    reader thread   takes messages from the queue ──► prepare pool, question or publishing pool, or the inbox
    prepare pool    hands sequences over                                         ──► inbox
    step thread     inbox ──► engine.submit / abort, engine.step()               ──► outbox
    sender thread   outbox ──► one message, however many events have gathered

The step thread waits for nothing but work: it neither reads a file nor talks to another process.
"""

import logging
import os
import queue
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from service.catalog import Catalog
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sequence import Sequence
from service.engine.stats import EngineStats
from service.errors import describe, describe_failure, is_defect
from service.gate.messages import CheckVersion
from service.ledger import Ledger
from service.lifecycle_messages import Promote, PublishUpload
from service.messages import (
    Accepted,
    Answered,
    Cancel,
    Classify,
    DescribeBase,
    Generate,
    ListModels,
    LoadAdapter,
    Message,
    Question,
    Refused,
    Score,
    ShowModel,
    UnloadAdapter,
    WorkerEvent,
    WorkerStarted,
    WorkerStats,
)
from service.outbox import POISONED_EXIT, Outbox
from service.prepare import Preparer
from service.priority import give_way
from service.ready import Ready
from service.shadow import MOST_WAITING

HEARTBEAT_S = 1.0
IDLE_WAIT_S = 0.25
"""How long an idle step thread sleeps before it looks whether to stop."""
QUESTION_THREADS, PUBLISH_THREADS, CHECK_THREADS = 2, 2, 4
REMEMBERED = 4096
"""Requests whose ids are remembered, so that a message that is sent twice is run once."""

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """What the step thread needs of an engine."""

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""

    def abort(self, request_id: str) -> int:
        """Drop the sequences of a request."""

    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def step(self) -> list[Event]:
        """Compute one batch."""

    def stats(self) -> EngineStats:
        """Counts as they are now."""

    def weights_hash(self) -> str:
        """Hash of the base's weights as they are in memory."""


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class Worker:
    """One engine process.

    Args:
        engine: What takes the steps.
        catalog: Answers questions about models.
        make_preparer: Builds the preparer around our ``emit`` and ``hand_over``.
        receive: Waits for the next ``(request id, message)`` for a while; raises ``queue.Empty`` if none came.
        send: Delivers one batch of events to the HTTP process.
        cache_bytes: Size of the host cache now.
    """

    def __init__(
        self,
        engine: StepEngine,
        catalog: Catalog,
        *,
        make_preparer: Callable[[Callable[..., None], Callable[[Ready], None]], Preparer],
        ledger: Ledger,
        receive: Callable[[], tuple[str, Message]],
        send: Callable[[list[WorkerEvent]], None],
        cache_bytes: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._receive = receive
        self._cache_bytes = cache_bytes
        self._ledger = ledger
        self._splits = catalog.splits
        self._outbox = Outbox(send)
        self._preparer = make_preparer(self._outbox.put, self._command)
        self._questions = ThreadPoolExecutor(QUESTION_THREADS, thread_name_prefix="question", initializer=give_way)
        self._publishing = ThreadPoolExecutor(PUBLISH_THREADS, thread_name_prefix="publish", initializer=give_way)
        self._checking = ThreadPoolExecutor(CHECK_THREADS, thread_name_prefix="check", initializer=give_way)
        self._inbox: deque[Ready | _Abort] = deque()
        self._wake = threading.Event()
        self._running: dict[str, set[int]] = {}
        """Indices that the engine still owes, by request."""
        self._sinks: dict[str, Callable[[Event], None]] = {}
        self._asked: dict[str, Future[None]] = {}
        """Questions that are being answered, or wait for it."""
        self._seen: OrderedDict[str, bool] = OrderedDict()
        """Requests that came, and whether they want their answer as a whole."""
        self._next_beat = 0.0
        self._stopping = False

    def stop(self) -> None:
        """Finish what is in flight, then leave :meth:`run`. Only sets a flag, so a signal handler may call it."""
        self._stopping = True

    def hand_over(self, ready: Ready) -> None:
        """Take work from inside this process; any thread may call."""
        self._command(ready)

    def run(self) -> None:
        """Take steps until told to stop. A step that raises ends the process: its state cannot be trusted."""
        self._outbox.put(WorkerStarted(uuid.uuid4().hex, self._catalog.describe_base()), self._stats())
        self._outbox.start()
        self._ledger.start()
        self._splits.start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while not self._finished():
            try:
                self._take_commands()
                self._step()
            except Exception:
                self._give_up()
        self._ledger.stop()
        self._splits.stop()
        self._outbox.put(self._stats())
        self._outbox.flush()

    # ── step thread ───────────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        if self._engine.has_work():
            events = self._engine.step()
            self._ledger.note(events)
            outward = [event for event in events if not self._sunk(event)]
            self._splits.comparison.note(outward)
            for event in events:
                self._settle(event)
            self._outbox.put(*outward, urgent=not all(self._can_wait(event) for event in outward))
            if not self._engine.has_work():
                self._beat()
        elif not self._inbox:
            self._wake.wait(IDLE_WAIT_S)
        if time.monotonic() >= self._next_beat:
            self._beat()

    def _can_wait(self, event: Event) -> bool:
        """Whether an event is a token that nobody looks at before the answer is whole: a message saved each step."""
        return isinstance(event, TokenEvent) and self._seen.get(event.request_id, False)

    def _sunk(self, event: Event) -> bool:
        """Give an event of work that no client asked for to whoever did; False if it is a client's."""
        sink = self._sinks.get(event.request_id)
        if sink is not None:
            sink(event)
        return sink is not None

    def _take_commands(self) -> None:
        self._wake.clear()
        while self._inbox:
            match self._inbox.popleft():
                case Ready() as ready:
                    self._submit(ready)
                case _Abort(request_id):
                    self._forget(request_id)

    def _submit(self, ready: Ready) -> None:
        if ready.part is not None and ready.part.shadow and self._is_busy():
            self._splits.comparison.drop(ready.part)
            return
        self._running[ready.request_id] = {sequence.index for sequence in ready.sequences}
        if ready.sink is not None:
            self._sinks[ready.request_id] = ready.sink
        try:
            for sequence in ready.sequences:
                self._engine.submit(sequence)
        except Exception as error:
            logger.exception("the engine refused a request")
            self._forget(ready.request_id)
            if ready.part is not None:
                self._splits.comparison.refused(ready.part, error)
            if ready.sink is not None:
                ready.sink(FailedEvent(ready.request_id, 0, "engine_failure", describe(error).message))
            else:
                self._outbox.put(Refused(ready.request_id, describe(error)))
        else:
            if ready.charged:
                self._ledger.open(ready)
            if ready.part is not None:
                owed = (sequence.index for sequence in ready.sequences)
                self._splits.comparison.open(ready.request_id, ready.part, owed, ready.answers, cold=ready.cold)

    def _is_busy(self) -> bool:
        """Whether there is too much to do for what nobody waits for."""
        return self._stopping or self._engine.stats().waiting > MOST_WAITING

    def _forget(self, request_id: str) -> None:
        self._engine.abort(request_id)
        self._ledger.close(request_id)
        self._splits.comparison.close(request_id)
        self._close(request_id)

    def _close(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._sinks.pop(request_id, None)

    def _settle(self, event: Event) -> None:
        """Forget what the engine has finished; a sequence that failed takes its request with it."""
        if isinstance(event, FailedEvent):
            if event.request_id in self._running:
                self._forget(event.request_id)
        elif isinstance(event, FinishedEvent | ClassifiedEvent):
            owed = self._running.get(event.request_id)
            if owed is not None:
                owed.discard(event.index)
                if not owed:
                    self._close(event.request_id)

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + HEARTBEAT_S
        self._outbox.put(self._stats())

    def _stats(self) -> WorkerStats:
        return WorkerStats(
            engine=self._engine.stats(),
            preparing=len(self._preparer),
            store_reads=self._preparer.store_reads,
            host_cache_bytes=self._cache_bytes(),
            back_outs=self._splits.back_outs,
            shadows_dropped=self._splits.comparison.dropped,
        )

    def _finished(self) -> bool:
        if self._stopping:  # nobody waits for what no client asked for
            for request_id in list(self._sinks):
                self._forget(request_id)
        idle = not self._engine.has_work() and not self._inbox and not len(self._preparer)
        return self._stopping and idle

    def _give_up(self) -> NoReturn:
        """Fail everything in flight and die; the supervisor starts a fresh process."""
        logger.exception("a step failed; the engine process ends and a fresh one takes over")
        message = "The engine met an error in the step that this request was part of."
        for request_id in self._running.keys() - self._sinks.keys():
            self._outbox.put(Refused(request_id, describe_failure("engine_failure", message)))
        try:
            self._outbox.flush()
        finally:
            os._exit(POISONED_EXIT)

    # ── reader thread ─────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        while True:
            try:
                request_id, message = self._receive()
            except queue.Empty:
                continue
            except (EOFError, OSError):  # the queue's owner is gone: so is the server
                os._exit(0)
            except Exception:
                logger.exception("a message could not be read")
                continue
            try:
                self._dispatch(request_id, message)
            except Exception as error:
                logger.exception("a message could not be handled")
                self._outbox.put(Refused(request_id, describe(error)))

    def _dispatch(self, request_id: str, message: Message) -> None:
        if isinstance(message, Cancel):
            asked = self._asked.get(request_id)
            if asked is not None and asked.cancel():
                return  # nobody had begun with it
            if not self._preparer.cancel(request_id):
                self._command(_Abort(request_id))
            return
        if request_id in self._seen:
            return
        self._remember(request_id, message)
        self._outbox.put(Accepted(request_id))
        if isinstance(message, Generate | Classify | Score):
            self._preparer.start(request_id, message)
        else:
            # What reads and checks a whole adapter must not stand before a question that is answered at once.
            pool = self._questions
            if isinstance(message, LoadAdapter | PublishUpload):
                pool = self._publishing
            elif isinstance(message, Promote | CheckVersion):
                pool = self._checking
            asked = pool.submit(self._answer, request_id, message)
            self._asked[request_id] = asked
            asked.add_done_callback(lambda _: self._asked.pop(request_id, None))

    def _remember(self, request_id: str, message: Message) -> None:
        self._seen[request_id] = isinstance(message, Generate) and not message.stream
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _command(self, command: Ready | _Abort) -> None:
        self._inbox.append(command)
        self._wake.set()

    # ── question pool ─────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, request_id: str, question: Question) -> None:
        try:
            self._outbox.put(Answered(request_id, self._ask(question)))
        except Exception as error:
            if is_defect(error):
                logger.exception("a question could not be answered")
            self._outbox.put(Refused(request_id, describe(error)))

    def _ask(self, question: Question) -> Any:
        match question:
            case ListModels(tenant):
                return self._catalog.models(tenant)
            case ShowModel(tenant, model):
                return self._catalog.model(model, tenant)
            case LoadAdapter(tenant, name, path, in_place, by):
                return self._catalog.load(name, path, tenant, in_place=in_place, by=by)
            case UnloadAdapter(tenant, name, by):
                return self._catalog.unload(name, tenant, by=by)
            case DescribeBase():
                return self._catalog.describe_base(), self._engine.weights_hash()
            case _:
                return self._catalog.ask(question)
