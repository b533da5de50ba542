"""What a route needs: one object on the app, made when the HTTP process starts."""

from dataclasses import dataclass

from starlette.requests import Request

from service.engine_client import EngineClient
from service.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The parts of the HTTP process."""

    settings: Settings
    metrics: Metrics
    client: EngineClient


def state_of(request: Request) -> ServiceState:
    """The parts of the HTTP process that the request reached."""
    state: ServiceState = request.app.state.service
    return state
