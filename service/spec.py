"""Every route of the service, registered through LitServe, all reaching the one engine process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from litserve.specs.base import LitSpec

from service.routes.adapters import load_lora_adapter, unload_lora_adapter
from service.routes.admin import ADMIN
from service.routes.chat import chat_completions
from service.routes.classify import classify
from service.routes.completions import completions
from service.routes.gates import check_version, list_gates, remove_gate, set_gate
from service.routes.health import healthz, metrics, readyz
from service.routes.info import health, info
from service.routes.instruct import instruct
from service.routes.lifecycle import (
    delete_adapter,
    delete_alias,
    delete_version,
    list_adapters,
    list_events,
    pin,
    promote,
    roll_back,
    show_adapter,
    unpin,
)
from service.routes.models import list_models, show_base, show_model
from service.routes.score import score
from service.routes.splits import end_split, set_split, show_split
from service.routes.tgi import tgi_either, tgi_generate, tgi_generate_stream
from service.routes.uploads import UPLOAD_PATH, upload_adapter
from service.routes.usage import show_usage
from service.tenants.caller import Scope


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    path: str
    handler: Callable[..., Any]
    scope: Scope | None = "infer"
    """What a key has to be for; None if any will do."""
    head: bool = False
    """Whether HEAD is answered too, as probes and proxies like to ask."""


ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions),
    Route("POST", "/v1/completions", completions),
    Route("POST", "/v1/instruct", instruct),
    Route("POST", "/v1/classify", classify),
    Route("POST", "/classify", classify),
    Route("POST", "/v1/score", score),
    Route("POST", "/generate", tgi_generate),
    Route("POST", "/generate_stream", tgi_generate_stream),
    Route("POST", "/", tgi_either),
    Route("GET", "/info", info, scope=None),
    Route("GET", "/health", health, scope=None, head=True),
    Route("GET", "/v1/models", list_models, scope=None),
    Route("GET", "/v1/models/{model_id:path}", show_model, scope=None),
    Route("GET", "/v1/base", show_base, scope=None),
    Route("POST", "/v1/load_lora_adapter", load_lora_adapter, scope="publish"),
    Route("POST", "/v1/unload_lora_adapter", unload_lora_adapter, scope="publish"),
    Route("GET", "/v1/usage", show_usage, scope=None),
    Route("POST", UPLOAD_PATH, upload_adapter, scope="publish"),
    Route("GET", "/v1/adapters", list_adapters, scope=None),
    Route("GET", "/v1/adapters/{tenant}/{name}", show_adapter, scope=None),
    Route("DELETE", "/v1/adapters/{tenant}/{name}", delete_adapter, scope="publish"),
    Route("POST", "/v1/adapters/{tenant}/{name}/promote", promote, scope="publish"),
    Route("POST", "/v1/adapters/{tenant}/{name}/rollback", roll_back, scope="publish"),
    Route("POST", "/v1/adapters/{tenant}/{name}/pin", pin, scope="publish"),
    Route("POST", "/v1/adapters/{tenant}/{name}/unpin", unpin, scope="publish"),
    Route("DELETE", "/v1/adapters/{tenant}/{name}/versions/{digest}", delete_version, scope="publish"),
    Route("DELETE", "/v1/adapters/{tenant}/{name}/aliases/{alias}", delete_alias, scope="publish"),
    Route("POST", "/v1/adapters/{tenant}/{name}/check", check_version, scope="publish"),
    Route("GET", "/v1/adapters/{tenant}/{name}/gates", list_gates, scope="publish"),
    Route("PUT", "/v1/adapters/{tenant}/{name}/gates/{alias}", set_gate, scope="admin"),
    Route("DELETE", "/v1/adapters/{tenant}/{name}/gates/{alias}", remove_gate, scope="admin"),
    Route("GET", "/v1/adapters/{tenant}/{name}/splits/{alias}", show_split, scope=None),
    Route("PUT", "/v1/adapters/{tenant}/{name}/splits/{alias}", set_split, scope="publish"),
    Route("DELETE", "/v1/adapters/{tenant}/{name}/splits/{alias}", end_split, scope="publish"),
    Route("GET", "/v1/events", list_events, scope=None),
    Route("GET", "/healthz", healthz, scope=None, head=True),
    Route("GET", "/readyz", readyz, scope=None, head=True),
    Route("GET", "/metrics", metrics, scope=None, head=True),
    *(Route(method, path, handler, scope="admin") for method, path, handler in ADMIN),
)


def add_head_routes(app: FastAPI) -> None:
    """Answer HEAD as GET is answered; the web server leaves the body out."""
    for route in ROUTES:
        if route.head:
            app.add_api_route(route.path, route.handler, methods=["HEAD"], include_in_schema=False)


class TenoraSpec(LitSpec):  # type: ignore[misc]  # LitServe has no types
    """The one LitSpec. It holds nothing: what a route needs hangs on the app."""

    def __init__(self) -> None:
        super().__init__()
        self.api_path = ROUTES[0].path

    @property
    def stream(self) -> bool:
        """Every reply of the engine process comes through a stream of batches."""
        return True

    def pre_setup(self, lit_api: Any) -> None:
        """Register the routes; LitServe asks once."""
        for route in ROUTES:
            self.add_endpoint(route.path, route.handler, [route.method])

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        """Never called: the routes talk to the engine process themselves."""
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        """Never called either."""
        return output
