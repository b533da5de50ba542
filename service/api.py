"""The engine process as LitServe starts it: one LitAPI that builds the engine, one LitLoop that runs the worker."""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType

from adapters.memory import keep_freed_memory, start_collecting
from service.errors import describe
from service.logs import configure_logging
from service.messages import Message, WorkerEvent
from service.orphans import exit_with
from service.settings import Settings

PUMP = "pump"
"""The one permanent entry of LitServe's response buffer; every batch of events arrives under it."""
HTTP_PROCESS = 0
"""There is one HTTP process, because the bound on the queue has to be exact."""
SWITCH_INTERVAL_S = 5e-4
"""How long a thread may keep the interpreter that another one wants: a step must not wait for a reader's 5 ms."""
SETUP_FAILED = 71
"""Exit code of an engine process that could not be set up; the reason is on stderr by then."""


class EngineLoop(LitLoop):  # type: ignore[misc]  # LitServe has no types
    """Runs the worker on LitServe's queues."""

    def run(  # noqa: PLR0917 (LitServe passes them by position)
        self,
        lit_api: "EngineAPI",
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Take steps until SIGTERM, then leave the process; LitServe would call this again for ever."""

        def receive() -> tuple[str, Message]:
            # The wait is short because whatever a dying process was waiting for goes to it, and is lost.
            _consumer, request_id, _sent_at, message = request_queue.get(timeout=0.5)
            return request_id, message

        def send(events: list[WorkerEvent]) -> None:
            self.put_response(transport, HTTP_PROCESS, PUMP, events, LitAPIStatus.OK, LoopResponseType.STREAMING)

        worker = lit_api.make_worker(receive, send)
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        start_collecting()  # beside the start of the HTTP process, which waited for the engine
        worker.run()
        os._exit(0)


class EngineAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Holds the settings until the engine process is there, then the engine.

    It is pickled into a fresh process, so nothing heavy is imported or made before :meth:`setup`.
    """

    def __init__(self, settings: Settings, spec: LitSpec, loop: LitLoop | None = None) -> None:
        super().__init__(spec=spec, loop=loop or EngineLoop())
        self.settings = settings
        self.manager_pid = 0
        """Set by the server once LitServe's manager process runs."""

    def setup(self, device: str) -> None:
        """Load the base. A reason not to is told in one sentence, and the process ends."""
        gc.disable()  # until the loop runs
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the main process decides
        exit_with(self.loop._server_pid, self.manager_pid)
        configure_logging(self.settings.log_level, self.settings.log_format)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        keep_freed_memory()
        try:
            self._build()
        except Exception as error:
            self._explain(error)
            os._exit(SETUP_FAILED)

    def make_worker(self, receive: Callable[[], tuple[str, Message]], send: Callable[[list[WorkerEvent]], None]) -> Any:
        """Connect the parts that :meth:`setup` made with the two ends of the queue."""
        from service.ledger import Ledger
        from service.prepare import Preparer
        from service.ready import Ready
        from service.worker import Worker

        def make_preparer(emit: Callable[..., None], hand_over: Callable[[Ready], None]) -> Preparer:
            return Preparer(self.catalog, self.cache, self.encoder, emit, hand_over)

        worker = Worker(
            self.engine,
            self.catalog,
            make_preparer=make_preparer,
            ledger=Ledger(self.database, self.catalog.base.id, self.cache.resident),
            receive=receive,
            send=send,
            cache_bytes=lambda: self.cache.stats().nbytes,
        )
        self.asides.connect(worker.hand_over)
        return worker

    def _build(self) -> None:
        from adapters.adapter import Adapter, load_adapter
        from adapters.base import resolve_base
        from adapters.cache import HostCache
        from adapters.shipped import publish_shipped
        from adapters.store import Version
        from service.asides import Asides
        from service.catalog import Catalog
        from service.encode import Encoder
        from service.gate.checks import Checker
        from service.gate.keeper import Gatekeeper
        from service.janitor import Janitor
        from service.opening import open_store
        from service.quotas import Quotas

        settings = self.settings
        base = resolve_base(settings.base, settings.base_revision)
        store = open_store(settings)
        self.database = store.database
        store.recover()
        if settings.examples:
            publish_shipped(store, base)
        self.engine = self.make_engine(base)

        def load(version: Version) -> Adapter:
            # Laid out here, off the step thread, so that a step only points at it.
            adapter = load_adapter(version.path, base, digest=version.digest, ref=str(version.name))
            packed: Adapter = self.engine.pack(adapter)
            quotas.check(packed)
            return packed

        quotas = Quotas(store.database)
        self.cache = HostCache(
            settings.host_cache_bytes, load, lambda digest: bool(self.catalog.lifecycle.is_pinned(digest)), quotas.of
        )
        self.encoder = Encoder(base, self.engine.max_model_len)
        self.asides = Asides()
        self.catalog = Catalog(
            base,
            store,
            self.cache,
            Gatekeeper(store, Checker(base, self.cache, self.encoder, self.asides)),
            max_model_len=self.engine.max_model_len,
            max_lora_rank=settings.max_lora_rank,
            folders=settings.adapter_folders,
            delete_grace=settings.delete_grace,
        )
        quotas.refresh()
        Janitor(quotas.refresh, every=1.0).start()
        Janitor(self.catalog.lifecycle.keep_house).start()

    def make_engine(self, base: Any) -> Any:
        """Build the engine; a test that provokes a failure builds another one."""
        from service.engine.config import EngineConfig
        from service.engine.engine import Engine

        settings = self.settings
        config = EngineConfig(
            max_running=settings.max_running,
            max_model_len=settings.max_model_len,
            max_step_tokens=settings.max_step_tokens,
            adapter_slots=settings.adapter_slots,
            max_lora_rank=settings.max_lora_rank,
            kv_cache_bytes=settings.kv_cache_bytes,
            dtype=settings.dtype,
            device=settings.device,
            prefix_reuse=settings.prefix_reuse,
            kernels=settings.kernels,
            quantize=settings.quantize,
            threads=settings.threads,
        )
        return Engine(base, config)

    def _explain(self, error: Exception) -> None:
        # An error of ours, or of the file system, says in its message what to do; any other is a defect.
        from adapters.errors import AdapterError

        if not isinstance(error, AdapterError | OSError | ValueError):
            traceback.print_exception(error)
        reason = error.message if isinstance(error, AdapterError) else str(error) or describe(error).message
        sys.stderr.write(f"tenora: the engine cannot start: {reason}\n")
        sys.stderr.flush()
