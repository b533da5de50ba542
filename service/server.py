"""The LitServe server: its processes, its signals, its end.

main        supervisor of the others; holds no model
manager     LitServe's queues
HTTP        one process, forked: routes, limits, the client of the engine
engine      one process, spawned: the base, the adapters, the step loop
"""

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from fastapi import FastAPI
from litserve import LitServer
from litserve.utils import LitAPIStatus, LoopResponseType, WorkerSetupStatus

from adapters.errors import AdapterError
from service.api import HTTP_PROCESS, PUMP, EngineAPI
from service.auth import Auth
from service.body_limit import BodyLimit, upload_bound
from service.engine_client import EngineClient
from service.handlers import add_error_handlers
from service.limits import Limiter
from service.logs import configure_logging
from service.messages import BaseInfo, WorkerGone
from service.metrics import Metrics, RequestMetrics
from service.multiplexed import MultiplexedModel
from service.openapi import DOCS, DOCS_ASSETS, add_docs, describe_app
from service.opening import open_database
from service.orphans import exit_with
from service.request_log import RequestLog
from service.routes.uploads import UPLOAD_PATH
from service.scopes import scope_finder
from service.settings import LOOPBACK, Settings
from service.spec import ROUTES, TenoraSpec, add_head_routes
from service.state import ServiceState
from service.supervisor import Supervisor
from service.tenants.access import Access
from service.tenants.directory import Directory
from service.tenants.keys import Keys
from service.traces import Traces
from service.uploads import Uploads

START_FAILED, VITAL_DIED = 2, 1
CUT_OFF_S = 2
_OWN_PATHS = frozenset({"/openapi.json", DOCS, DOCS_ASSETS, *(route.path for route in ROUTES)})


class StartError(RuntimeError):
    """The server cannot start; an empty message means that the reason is on stderr already."""


class TenoraServer(LitServer):  # type: ignore[misc]  # LitServe has no types
    """One server; :meth:`run` returns by raising SystemExit."""

    def __init__(self, settings: Settings, api: EngineAPI | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.metrics_top_k)
        self.traces = Traces()
        self.database = open_database(settings)
        self.keys = Keys(self.database)
        self.directory = Directory(self.database)
        self.access = Access(self.keys, self.directory, settings.api_keys, open_without_keys=settings.open_without_keys)
        self._supervisor: Supervisor | None = None
        self._http_processes: Mapping[Any, Any] = {}
        self._sockets: Sequence[socket.socket] = ()
        self._exit_code = 0
        # LitServe adds middleware from the inside out. It is told "cpu" so that it starts one engine process on any
        # machine; where the base runs is the engine's own affair.
        super().__init__(
            api or EngineAPI(settings, TenoraSpec()),
            accelerator="cpu",
            timeout=False,
            # LitServe's own pages, dropped below, must not stand where ours do.
            healthcheck_path="/litserve/health",
            info_path="/litserve/info",
            middlewares=[
                MultiplexedModel,
                (
                    BodyLimit,
                    {
                        "max_bytes": settings.max_body_bytes,
                        "timeout": settings.body_timeout,
                        "others": {("POST", UPLOAD_PATH): upload_bound(settings)},
                    },
                ),
                (Auth, {"access": self.access, "scope_of": scope_finder(ROUTES)}),
                (RequestMetrics, {"metrics": self.metrics, "paths": _OWN_PATHS}),
                (RequestLog, {"metrics": self.metrics, "traces": self.traces, "paths": _OWN_PATHS}),
            ],
        )
        # What is left at the end of the drain gets an error; only what does not take that is cut off.
        self.uvicorn_graceful_timeout = settings.drain_timeout + CUT_OFF_S
        self._drop_stock_routes()
        add_docs(self.app)
        self.app.router.redirect_slashes = False  # /v1/base/ is no route of ours
        add_head_routes(self.app)
        add_error_handlers(self.app)
        describe_app(self.app, tenora_version())

    # ── HTTP process ──────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connect the app with the engine process for as long as the HTTP process serves."""
        configure_logging(self.settings.log_level, self.settings.log_format)
        exit_with(os.getppid(), self.transport_config.manager._process.pid)
        queue = self._get_request_queue(self.lit_api.api_path)
        client = EngineClient(queue.put, self.response_buffer, self.metrics, self.settings.max_queue)
        self.metrics.follow(client)
        uploads = Uploads(self.settings.store)
        uploads.clean()
        self._end_drain(client, uploads)
        self.traces.start()
        app.state.service = ServiceState(
            self.settings,
            self.metrics,
            client,
            self.database,
            self.access,
            self.keys,
            self.directory,
            Limiter(),
            uploads,
        )
        async with super().lifespan(app):
            tasks = [asyncio.create_task(client.pump()), asyncio.create_task(self._announce(client))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                self.traces.stop()

    def _end_drain(self, client: EngineClient, uploads: Uploads) -> None:
        """When the HTTP process is told to stop, give what is in flight its time, then an error."""
        loop, told = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        listening = [(ours, ours.dup()) for ours in self._sockets]
        assert callable(told), "uvicorn handles signals while it serves"

        def end() -> None:
            client.fail_all()
            uploads.end_all()

        def stop(signum: int, frame: FrameType | None) -> None:
            told(signum, frame)
            loop.call_soon_threadsafe(loop.call_later, self.settings.drain_timeout, end)
            loop.call_soon_threadsafe(_refuse_connections, loop, listening)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    async def _announce(self, client: EngineClient) -> None:
        """Say where the server is, once it can be used."""
        await client.started.wait()
        host = self.settings.url.removeprefix("http://").rpartition(":")[0].strip("[]")
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, self.settings.port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        assert client.base is not None
        sys.stdout.write(self._banner(client.base))
        sys.stdout.flush()

    def _banner(self, base: BaseInfo) -> str:
        url = self.settings.url
        return (
            f"tenora {tenora_version()} is ready at {url}\n"
            f"  base      {base.id} ({base.kind}, context {base.max_model_len})\n"
            f"  store     {self.settings.store.resolve()}\n"
            f"  adapters  {base.adapters}\n"
            f"  docs      {url}/docs\n"
            f"{self._who_may()}"
        )

    def _who_may(self) -> str:
        if not self.access.is_open():
            return ""
        where = "on this machine" if self.settings.host in LOOPBACK else "WHO REACHES IT"
        return f"  keys      none: everybody {where} may do everything (tenora keys create makes the first)\n"

    def _drop_stock_routes(self) -> None:
        # LitServe's own pages know nothing of keys and tenants; ours replace them.
        self.app.router.routes[:] = [route for route in self.app.router.routes if self._is_ours(route)]

    @staticmethod
    def _is_ours(route: Any) -> bool:
        path = getattr(route, "path", None)
        return path in _OWN_PATHS - {DOCS} and not (path == "/" and "GET" in route.methods)

    # ── main process ──────────────────────────────────────────────────────────────────────────────────────

    def run(self, **kwargs: Any) -> None:
        """Serve until SIGTERM or ^C, then drain.

        Raises:
            SystemExit: Always; 0 after a drain, 1 if the HTTP process or the queues died, 2 if it could not start.
        """
        settings = self.settings
        configure_logging(settings.log_level, settings.log_format)
        self._catch_signals()
        try:
            check_port_free(settings)
            self._check_exposure()
            super().run(
                host=settings.listen_host,
                port=settings.port,
                num_api_servers=1,
                log_level=settings.log_level,
                log_config=None,  # the web server's records go where ours go
                access_log=False,  # and the line per request is ours
                ws="none",  # else a request to upgrade is handed to a protocol that nobody here answers
                generate_client_file=False,
                api_server_worker_type="process",
                **kwargs,
            )
        except KeyboardInterrupt:
            pass  # told to stop while the base was still loading
        except (EOFError, OSError) as error:
            self._exit_code = VITAL_DIED
            sys.stderr.write(f"tenora: the process that holds the queues died ({type(error).__name__})\n")
        except StartError as error:
            self._exit_code = START_FAILED
            if str(error):
                sys.stderr.write(f"tenora: {error}\n")
        finally:
            self._kill_survivors()
        raise SystemExit(self._exit_code)

    def _check_exposure(self) -> None:
        """Bring the database up to date, and refuse to be open to other machines by mistake.

        Raises:
            StartError: The server would be open, or the database cannot be used.
        """
        settings = self.settings
        try:
            has_keys = bool(settings.api_keys) or self.keys.any()
        except AdapterError as error:
            raise StartError(error.message) from error
        finally:
            self.database.close()  # connections do not survive the forks to come
        if not has_keys and not settings.open_without_keys:
            raise StartError(
                f"host {settings.host} can be reached from other machines and there are no API keys: "
                "make one with `tenora keys create`, set TENORA_API_KEYS, or pass --allow-no-auth"
            )

    def _catch_signals(self) -> None:
        main = os.getpid()

        def stop(signum: int, _frame: FrameType | None) -> None:
            if os.getpid() != main:
                return  # the manager and the HTTP process inherit this; the latter drains by uvicorn's handler
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, hurry)
            raise KeyboardInterrupt  # LitServe's one graceful way out

        def hurry(_signum: int, _frame: FrameType | None) -> None:
            if os.getpid() == main:
                self._kill_survivors()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _init_manager(self, num_api_servers: int) -> Any:
        # What has been imported stays: what is forked from here on shares it, as nobody searches it for garbage.
        gc.freeze()
        gc.enable()
        manager = super()._init_manager(num_api_servers)
        self.lit_api.manager_pid = manager._process.pid
        return manager

    def verify_worker_status(self) -> None:
        """Wait for the engine process; LitServe's own would wait for ever for one that was killed in setup."""
        while not all(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values()):
            if not all(process.is_alive() for process in self.inference_workers):
                codes = {process.exitcode for process in self.inference_workers}
                killed = any(code is not None and code < 0 for code in codes)
                raise StartError("the engine process was killed while it loaded the base" if killed else "")
            time.sleep(0.02)

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: Mapping[Any, Any]) -> None:
        """Watch with a supervisor instead of LitServe's monitor, which knows no back-off and no HTTP process."""
        self._http_processes = uvicorn_workers
        self._supervisor = Supervisor(
            engine=lambda: self.inference_workers[0],
            vital=[*uvicorn_workers.values(), manager._process],
            replace=self._replace_engine,
            mourn=self._mourn_engine,
            give_up=self._give_up,
        )
        self._supervisor.start()

    def _start_server(self, *args: Any, **kwargs: Any) -> Any:
        """Start the HTTP process; it inherits the sockets that it will have to shut."""
        self._sockets = inspect.signature(super()._start_server).bind(*args, **kwargs).arguments["sockets"]
        return super()._start_server(*args, **kwargs)

    def _replace_engine(self) -> None:
        self.inference_workers[0] = self.launch_single_inference_worker(self.lit_api, 0)

    def _mourn_engine(self) -> None:
        reply = ([WorkerGone()], LitAPIStatus.OK, LoopResponseType.STREAMING, 0)
        self._transport.send((PUMP, reply), consumer_id=HTTP_PROCESS)

    def _give_up(self) -> None:
        self._exit_code = VITAL_DIED
        os.kill(os.getpid(), signal.SIGTERM)

    def _perform_graceful_shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Drain: the HTTP process first, so that what is in flight gets its answer, then the engine."""
        if self._supervisor is not None:
            self._supervisor.stop()
        super()._perform_graceful_shutdown(*args, **kwargs)

    def _kill_survivors(self) -> None:
        for process in (*getattr(self, "inference_workers", ()), *self._http_processes.values()):
            if process.is_alive():
                process.kill()


def _refuse_connections(
    loop: asyncio.AbstractEventLoop, listening: Sequence[tuple[socket.socket, socket.socket]]
) -> None:
    """Make the kernel refuse new connections, once uvicorn has closed its own end of the sockets.

    The main process and the manager were forked with copies, and as long as one is open the kernel accepts for it.
    Shutting the socket down, unlike closing it, holds for all copies.
    """
    if any(ours.fileno() >= 0 for ours, _ in listening):
        loop.call_later(0.01, _refuse_connections, loop, listening)
        return
    for _, copy in listening:
        with contextlib.suppress(OSError):  # told twice
            copy.shutdown(socket.SHUT_RDWR)


def check_port_free(settings: Settings) -> None:
    """Say it in one sentence if the port is taken.

    Raises:
        StartError: Somebody else listens there.
    """
    family = socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.listen_host, settings.port))
        except OSError as error:
            message = f"cannot listen on port {settings.port} ({error.strerror}): choose another --port"
            raise StartError(message) from error


def tenora_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("tenora")
    except PackageNotFoundError:
        return "0+source"


def serve(settings: Settings) -> None:
    """Run a server until it is told to stop."""
    TenoraServer(settings).run()
