"""The HTTP process's end of the line to the engine process: what is in flight, who waits for what.

A request is pending from `submit` until `close`. Its events come in batches, one message per engine step, and are
sorted into the queue of each request. The bound on the queue is exact because all of them pass here.
"""

import asyncio
import logging
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from litserve.utils import ResponseBufferItem

from service.api import HTTP_PROCESS, PUMP
from service.engine.events import ClassifiedEvent, FailedEvent, FinishedEvent, TokenEvent
from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    EngineUnavailableError,
    ErrorDetail,
    InvalidRequestError,
    QueueFullError,
    ReportedError,
    describe_failure,
)
from service.messages import (
    Accepted,
    Answered,
    BaseInfo,
    Cancel,
    Classify,
    Generate,
    Message,
    Prepared,
    Question,
    Refused,
    Score,
    Work,
    WorkerEvent,
    WorkerGone,
    WorkerStarted,
    WorkerStats,
)
from service.metrics import Metrics

GRACE_S = 0.5
"""How much later than the engine this side calls a request overdue."""
SILENCE_S = 30.0
"""An engine process that says nothing for so long is not ready."""
QUESTION_TIMEOUT_S = 120.0

logger = logging.getLogger(__name__)

Output = TokenEvent | FinishedEvent | ClassifiedEvent
_Item = Output | FailedEvent | Prepared | Refused | Answered | ErrorDetail


class Pending:
    """One request that the engine process owes an answer."""

    __slots__ = ("accepted", "created", "message", "prepared", "queue", "request_id", "settled", "timer", "weight")

    def __init__(
        self, message: Work | Question, weight: int, timer: Callable[["Pending"], asyncio.TimerHandle]
    ) -> None:
        self.request_id = uuid.uuid4().hex
        self.message = message
        self.weight = weight
        self.created = time.monotonic()
        self.accepted = False
        """The engine process has it: if that dies, the request is lost."""
        self.settled = False
        """The engine process is through with it: there is nothing left to cancel."""
        self.prepared: Prepared | None = None
        self.queue: asyncio.Queue[_Item] = asyncio.Queue()
        self.timer = timer(self)

    def fail(self, error: ErrorDetail) -> None:
        """Make the waiting side raise."""
        self.queue.put_nowait(error)

    async def next(self) -> Output | Answered:
        """The next output of the engine.

        Raises:
            ReportedError: The request failed; nothing follows.
        """
        while True:
            item = await self.queue.get()
            match item:
                case ErrorDetail():
                    raise ReportedError(item)
                case Refused():
                    self.settled = True
                    raise ReportedError(item.error)
                case Prepared():
                    self.prepared = item
                case FailedEvent():
                    self.settled = True
                    raise ReportedError(describe_failure(item.code, item.message))
                case Answered():
                    self.settled = True
                    return item
                case TokenEvent() | FinishedEvent() | ClassifiedEvent():
                    return item

    async def outputs(self) -> AsyncGenerator[Output]:
        """Outputs until every sequence of the request is finished."""
        owed = self.weight
        while owed:
            event = await self.next()
            assert not isinstance(event, Answered), "work is not answered like a question"
            if not isinstance(event, TokenEvent):
                owed -= 1
                self.settled = owed == 0
            yield event


class EngineClient:
    """Sends messages to the engine process and sorts its events.

    Args:
        send: Puts one message on the request queue.
        buffer: LitServe's response buffer; one permanent entry in it receives every batch.
        metrics: Counts.
        max_queue: Sequences in flight, at most.
    """

    def __init__(
        self,
        send: Callable[[tuple[int, str, float, Message]], None],
        buffer: dict[str, ResponseBufferItem],
        metrics: Metrics,
        max_queue: int,
    ) -> None:
        self._send = send
        self._max_queue = max_queue
        self._metrics = metrics
        self._pending: dict[str, Pending] = {}
        self._in_flight = 0
        self._in_flight_of: Counter[str | None] = Counter()
        """Sequences by tenant; without those that have none."""
        self._boot: str | None = None
        self._heard = 0.0
        self._pace = 0.5
        """Seconds that a request takes, smoothed; it becomes the Retry-After of a full queue."""
        self.base: BaseInfo | None = None
        self.started = asyncio.Event()
        self._buffer = buffer
        self._inbox = ResponseBufferItem(event=asyncio.Event(), response_queue=deque())
        buffer[PUMP] = self._inbox

    @property
    def ready(self) -> bool:
        """Whether an engine process is there and talks."""
        return self._boot is not None and time.monotonic() - self._heard < SILENCE_S

    @property
    def in_flight(self) -> int:
        """Sequences that the engine process owes."""
        return self._in_flight

    @property
    def buffered(self) -> int:
        """Entries in LitServe's response buffer: one, unless something leaks."""
        return len(self._buffer)

    # ── events in ─────────────────────────────────────────────────────────────────────────────────────────

    async def pump(self) -> None:
        """Sort batches into requests until cancelled."""
        assert self._inbox.response_queue is not None
        while True:
            await self._inbox.event.wait()
            self._inbox.event.clear()
            while self._inbox.response_queue:
                events, _status = self._inbox.response_queue.popleft()
                self._heard = time.monotonic()
                for event in events:
                    self._deliver(event)

    def _deliver(self, event: WorkerEvent) -> None:
        match event:
            case WorkerStats():
                self._metrics.observe_worker(event)
            case WorkerStarted():
                self._welcome(event)
            case WorkerGone():
                self._mourn()
            case _:
                pending = self._pending.get(event.request_id)
                if pending is None:
                    return  # closed meanwhile
                if isinstance(event, Accepted):
                    pending.accepted = True
                else:
                    pending.queue.put_nowait(event)

    def _welcome(self, event: WorkerStarted) -> None:
        """A fresh engine process: what it never saw is sent again, what its predecessor had is lost."""
        if self.base is not None:
            self._metrics.worker_restarts.inc()
            self._mourn()
        self._boot, self.base = event.boot, event.base
        for pending in self._pending.values():
            if not pending.accepted:
                self._post(pending.request_id, pending.message)
        self.started.set()

    def _mourn(self) -> None:
        self._boot = None
        error = EngineUnavailableError(
            "The engine process died under this request; a fresh one is on its way.", retry_after=1
        )
        for pending in self._pending.values():
            if pending.accepted:
                pending.fail(error.detail())

    # ── requests out ──────────────────────────────────────────────────────────────────────────────────────

    def submit(self, work: Work) -> Pending:
        """Send work to the engine.

        Raises:
            QueueFullError: As many sequences as allowed are in flight.
            EngineUnavailableError: There is no engine process right now.
        """
        if work.weight > self._max_queue:
            raise InvalidRequestError(
                f"The request asks for {work.weight} sequences; at most {self._max_queue} may be in flight."
            )
        self._check_there()
        if self._in_flight + work.weight > self._max_queue and not self._is_due(work):
            self._metrics.rejected.inc()
            wait = max(1, math.ceil(self._pace * self._in_flight / self._max_queue))
            raise QueueFullError(
                f"{self._in_flight} sequences are in flight and at most {self._max_queue} may be.", retry_after=wait
            )
        return self._open(work, work.weight, work.deadline)

    def _is_due(self, work: Work) -> bool:
        """Whether a tenant may go beyond a queue that others have filled: as far as an equal part of it.

        However many tenants there are, what is in flight stays below twice the bound.
        """
        own = self._in_flight_of[work.tenant]
        tenants = len(self._in_flight_of.keys() | {work.tenant})
        return tenants > 1 and own + work.weight <= self._max_queue // tenants

    async def ask(self, question: Question, timeout: float = QUESTION_TIMEOUT_S) -> Any:
        """Ask the engine process something, and wait so many seconds at most; raises what it refuses with."""
        self._check_there()
        pending = self._open(question, 0, time.monotonic() + timeout)
        try:
            event = await pending.next()
        finally:
            self.close(pending)
        assert isinstance(event, Answered), "a question is answered, not worked on"
        return event.value

    def close(self, pending: Pending) -> None:
        """Forget a request; one that is not settled is taken out of the engine. Closing twice does nothing."""
        if self._pending.pop(pending.request_id, None) is None:
            return
        pending.timer.cancel()
        self._count(pending.message, -pending.weight)
        if pending.settled:
            self._pace += 0.1 * (time.monotonic() - pending.created - self._pace)
        else:
            self._metrics.cancelled.inc()
            self._post(pending.request_id, Cancel())

    def fail_all(self) -> None:
        """Give up everything in flight, because the server stops."""
        error = EngineUnavailableError("The server is stopping, and the request was not finished in time.").detail()
        for pending in self._pending.values():
            pending.fail(error)

    def _check_there(self) -> None:
        if not self.ready:
            raise EngineUnavailableError("The engine is not ready.", retry_after=2)

    def _open(self, message: Work | Question, weight: int, deadline: float) -> Pending:
        loop = asyncio.get_running_loop()
        late = DeadlineExceededError("The request's deadline passed before it was finished.").detail()
        delay = deadline - time.monotonic() + GRACE_S
        pending = Pending(message, weight, lambda made: loop.call_later(delay, made.fail, late))
        self._pending[pending.request_id] = pending
        self._count(message, weight)
        self._post(pending.request_id, message)
        return pending

    def _count(self, message: Work | Question, weight: int) -> None:
        self._in_flight += weight
        if weight:
            assert isinstance(message, Generate | Classify | Score), "a question is no sequence"
            self._in_flight_of[message.tenant] += weight
            if not self._in_flight_of[message.tenant]:
                del self._in_flight_of[message.tenant]

    def _post(self, request_id: str, message: Message) -> None:
        self._send((HTTP_PROCESS, request_id, time.monotonic(), message))


async def watch_disconnect(receive: Callable[[], Any], pending: Pending) -> None:
    """Fail a request when its client hangs up. The web server tells so, but stops no handler by itself."""
    while (await receive())["type"] != "http.disconnect":
        pass
    pending.fail(ClientGoneError("The client closed the connection.").detail())
