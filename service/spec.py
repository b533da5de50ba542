"""Every route of the service, registered through LitServe, all reaching the one engine process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from litserve.specs.base import LitSpec

from service.routes.adapters import load_lora_adapter, unload_lora_adapter
from service.routes.chat import chat_completions
from service.routes.classify import classify
from service.routes.completions import completions
from service.routes.health import healthz, metrics, readyz
from service.routes.instruct import instruct
from service.routes.models import list_models, show_base, show_model
from service.routes.score import score


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    path: str
    handler: Callable[..., Any]
    head: bool = False
    """Whether HEAD is answered too, as probes and proxies like to ask."""


ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions),
    Route("POST", "/v1/completions", completions),
    Route("POST", "/v1/instruct", instruct),
    Route("POST", "/v1/classify", classify),
    Route("POST", "/classify", classify),
    Route("POST", "/v1/score", score),
    Route("GET", "/v1/models", list_models),
    Route("GET", "/v1/models/{model_id:path}", show_model),
    Route("GET", "/v1/base", show_base),
    Route("POST", "/v1/load_lora_adapter", load_lora_adapter),
    Route("POST", "/v1/unload_lora_adapter", unload_lora_adapter),
    Route("GET", "/healthz", healthz, head=True),
    Route("GET", "/readyz", readyz, head=True),
    Route("GET", "/metrics", metrics, head=True),
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
