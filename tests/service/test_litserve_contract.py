"""The names of LitServe that the service leans on, most of them private: an upgrade that moves one fails here."""

import inspect
from pathlib import Path
from typing import Any

import litserve
import pytest
from litserve import LitServer
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.server import response_queue_to_buffer
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem, WorkerSetupStatus

from service.api import EngineAPI, EngineLoop
from service.server import CUT_OFF_S, TenoraServer
from service.settings import Settings
from service.spec import ROUTES, TenoraSpec


@pytest.fixture(scope="module")
def server() -> TenoraServer:
    return TenoraServer(Settings(store=Path("store"), drain_timeout=7, max_body_bytes=99))


def source(function: Any) -> str:
    return inspect.getsource(function)


def test_version_is_pinned() -> None:
    assert litserve.__version__ == "0.2.19"


def test_response_buffer_entries(server: TenoraServer) -> None:
    assert server.response_buffer == {}
    assert {"event", "response_queue"} <= set(ResponseBufferItem.__dataclass_fields__)
    # A streaming reply is appended as [data, status], and its event is set.
    assert "response_item.response_queue.append(response)" in source(response_queue_to_buffer)
    assert "uid, (*response, response_type, worker_id) = result" in source(response_queue_to_buffer)


def test_request_queue_per_path(server: TenoraServer) -> None:
    server.litapi_request_queues["/somewhere"] = sentinel = object()
    assert server._get_request_queue("/somewhere") is sentinel


def test_one_worker_whatever_the_machine(server: TenoraServer) -> None:
    assert server.lit_api.api_path == ROUTES[0].path
    assert server._inference_workers_config_for_api(server.lit_api.api_path) == ["cpu"]


def test_the_worker_sets_up_then_runs_the_loop(server: TenoraServer) -> None:
    text = source(inference_worker)
    assert text.index("lit_api.setup(device)") < text.index("loop(")
    assert isinstance(server.lit_api.loop, EngineLoop)
    assert list(inspect.signature(LitLoop.run).parameters) == list(inspect.signature(EngineLoop.run).parameters)
    assert "def put_response" in source(LitLoop)
    assert "(uid, (response_data, status, response_type, self.worker_id))" in source(LitLoop.put_response)
    assert {"transport", "response_queue_id", "uid", "response_data", "status", "response_type"} < set(
        inspect.signature(LitLoop.put_response).parameters
    )
    assert "consumer_id" in inspect.signature(MessageTransport.send).parameters


def test_server_pid_is_the_main_process(server: TenoraServer) -> None:
    import os

    assert server.lit_api.loop._server_pid == os.getpid()


def test_hooks_that_are_overridden_exist() -> None:
    for name in (
        "lifespan", "_init_manager", "verify_worker_status", "_start_worker_monitoring", "_perform_graceful_shutdown",
        "launch_single_inference_worker", "_start_server", "_register_spec_endpoints", "run",
    ):  # fmt: skip
        assert callable(getattr(LitServer, name)), name
    assert list(inspect.signature(LitServer._start_worker_monitoring).parameters) == [
        "self", "manager", "uvicorn_workers",
    ]  # fmt: skip
    run = source(LitServer.run)
    for step in (
        "self._init_manager(", "self.launch_inference_worker(", "self.verify_worker_status()", "self._start_server(",
        "self._start_worker_monitoring(manager, uvicorn_workers)", "self._shutdown_event.wait()",
        "except KeyboardInterrupt", "self._perform_graceful_shutdown(manager, uvicorn_workers, shutdown_reason)",
    ):  # fmt: skip
        assert step in run, step
    assert run.index("self._init_manager(") < run.index("self.launch_inference_worker(")


def test_manager_has_a_process() -> None:
    import multiprocessing

    with multiprocessing.Manager() as manager:
        assert manager._process.pid > 0  # type: ignore[attr-defined]


def test_what_the_server_keeps_while_it_runs(server: TenoraServer) -> None:
    """The transport and its manager, the engine processes, and whether they are set up."""
    prepare, run, launch = (
        source(LitServer._init_manager),
        source(LitServer.run),
        source(LitServer.launch_inference_worker),
    )
    assert "self.workers_setup_status = manager.dict()" in prepare
    assert "self.transport_config.manager = manager" in prepare
    assert "self._transport = " in prepare
    assert "self.inference_workers = " in run + launch
    assert "self.workers_setup_status[" in source(LitServer.launch_single_inference_worker)


def test_drain_time_reaches_uvicorn(server: TenoraServer) -> None:
    assert server.uvicorn_graceful_timeout == 7 + CUT_OFF_S
    assert "timeout_graceful_shutdown=self.uvicorn_graceful_timeout" in source(LitServer._start_server)


def test_sockets_are_passed_to_the_http_process() -> None:
    assert "sockets" in inspect.signature(LitServer._start_server).parameters
    assert "args=(response_queue_id, sockets)" in source(LitServer._start_server)


def test_statuses() -> None:
    assert LitAPIStatus.OK == "OK"
    assert LoopResponseType.STREAMING.value == "STREAMING"
    assert WorkerSetupStatus.READY == "ready"


def test_the_spec_registers_every_route_and_streams(server: TenoraServer) -> None:
    assert issubclass(TenoraSpec, LitSpec)
    spec = server.lit_api.spec
    assert [(path, methods) for path, _, methods in spec.endpoints] == [
        (route.path, [route.method]) for route in ROUTES
    ]
    assert server.litapi_connector.any_stream()
    paths = {getattr(route, "path", "") for route in server.app.router.routes}
    assert paths == {route.path for route in ROUTES} | {"/docs", "/docs-assets", "/openapi.json"}


def test_the_api_travels_to_another_process(server: TenoraServer) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(server.lit_api))
    assert isinstance(copy, EngineAPI)
    assert copy.settings == server.settings
