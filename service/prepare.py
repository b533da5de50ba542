"""Turns requests into sequences off the step thread: resolve the name, read the adapter, render, tokenise.

Two pools keep tenants apart. The prepare pool only does work that is short; an adapter that is not in host memory
is read in the load pool, and the requests that wait for it wait together without holding a thread. A cold adapter
delays its own requests and nobody else's.
"""

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor

from adapters.adapter import Adapter
from adapters.cache import HostCache
from adapters.store import Version
from service.catalog import Catalog, served_name
from service.comparison import Part
from service.encode import Encoder, check_task
from service.engine.sequence import Sequence
from service.errors import DeadlineExceededError, ServiceError, describe
from service.messages import Generate, Prepared, Refused, RequestEvent, Work
from service.priority import give_way
from service.ready import Ready
from service.shadow import Shadows

PREPARE_THREADS, LOAD_THREADS = 4, 2

logger = logging.getLogger(__name__)


class _Job:
    """One request on its way to the engine."""

    __slots__ = ("cancelled", "part", "request_id", "work")

    def __init__(self, request_id: str, work: Work) -> None:
        self.request_id = request_id
        self.work = work
        self.cancelled = False
        self.part: Part | None = None


class Preparer:
    """Prepares requests in its own threads.

    Args:
        catalog: Finds the adapter that a model name means.
        cache: Adapters in host memory.
        encoder: Renders and tokenises.
        emit: Takes events for the HTTP process; called from any thread.
        hand_over: Takes a prepared request; called from any thread.
    """

    def __init__(
        self,
        catalog: Catalog,
        cache: HostCache,
        encoder: Encoder,
        emit: Callable[[RequestEvent], None],
        hand_over: Callable[[Ready], None],
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._encoder = encoder
        self._emit = emit
        self._hand_over = hand_over
        self._comparison = catalog.splits.comparison
        self._shadows = Shadows(catalog, cache, encoder, self._hand_over_shadow)
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, list[_Job]] = {}
        """Jobs by the adapter that is being read for them; by name too, as two tenants may own the same bytes."""
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")
        self._load_pool = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="load", initializer=give_way)
        self.store_reads = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, request_id: str, work: Work) -> None:
        """Begin to prepare a request; returns at once."""
        job = _Job(request_id, work)
        with self._lock:
            self._jobs[request_id] = job
        self._pool.submit(self._guarded, job, self._resolve)

    def cancel(self, request_id: str) -> bool:
        """Give up a request; False if it is not here (any more), so that the engine has to be told."""
        with self._lock:
            job = self._jobs.pop(request_id, None)
            if job is not None:
                job.cancelled = True
        if job is not None and job.part is not None:
            self._comparison.aborted(job.part)
        return job is not None

    def _guarded(self, job: _Job, stage: Callable[[_Job], None]) -> None:
        """Run one stage of a job; whatever goes wrong is told to its client."""
        if job.cancelled:
            return
        try:
            if time.monotonic() >= job.work.deadline:
                raise DeadlineExceededError("The request's deadline passed before it was prepared.")
            stage(job)
        except Exception as error:
            self._refuse(job, error)

    def _resolve(self, job: _Job) -> None:
        routed = self._catalog.route(job.work)
        version, job.part = routed.version, routed.part
        check_task(job.work, version, self._catalog.base)
        adapter = None if version is None else self._cache.peek(version)
        if version is None or adapter is not None:
            self._encode(job, version, adapter, cold=False)
        else:
            self._wait_for(job, version)

    def _wait_for(self, job: _Job, version: Version) -> None:
        with self._lock:
            queue = self._waiting.setdefault(served_name(version), [])
            queue.append(job)
            first = len(queue) == 1
        if first:
            self._load_pool.submit(self._load, version)

    def _load(self, version: Version) -> None:
        adapter: Adapter | None = None
        failure: Exception | None = None
        # Another name with the same bytes, or the read that this request just missed, may have brought it.
        cold = not self._cache.contains(version)
        try:
            adapter = self._cache.get(version)
        except Exception as error:
            failure = error

        def encode(job: _Job) -> None:
            self._encode(job, version, adapter, cold=cold)

        with self._lock:
            self.store_reads += cold
            jobs = self._waiting.pop(served_name(version))
        for job in jobs:
            if failure is not None:
                self._refuse(job, failure)
            else:
                self._pool.submit(self._guarded, job, encode)

    def _encode(self, job: _Job, version: Version | None, adapter: Adapter | None, *, cold: bool) -> None:
        sequences = self._encoder.sequences(job.request_id, job.work, version, adapter)
        labels = version.manifest.labels if version is not None else None
        multi_label = version is not None and version.manifest.multi_label
        served = served_name(version) if version is not None else self._catalog.base.id
        with self._lock:
            # Under the lock a cancellation comes either before this, and nothing is handed over, or after it, and
            # the engine is told; there is no gap for a sequence to be lost in.
            if self._jobs.pop(job.request_id, None) is None:
                return
            self._emit(Prepared(job.request_id, served, cold, labels or (), multi_label))
            answers = job.work.n if isinstance(job.work, Generate) else 1
            self._hand_over(Ready(job.request_id, sequences, answers, cold, job.part))
        if job.part is not None:
            self._shadows.begin(job.request_id, job.work, job.part)

    def _hand_over_shadow(self, request_id: str, sequences: Many[Sequence], answers: int, part: Part) -> None:
        sink = self._comparison.take
        self._hand_over(Ready(request_id, sequences, answers, cold=False, part=part, sink=sink, charged=False))

    def _refuse(self, job: _Job, error: Exception) -> None:
        with self._lock:
            if self._jobs.pop(job.request_id, None) is None:
                return
        detail = describe(error)
        if job.part is not None:
            self._comparison.refused(job.part, error)
        if detail.status >= 500 and not isinstance(error, ServiceError):
            logger.error("preparing a request failed", exc_info=error)
        self._emit(Refused(job.request_id, detail))
