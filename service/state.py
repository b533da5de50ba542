"""What a route needs: one object on the app, made when the HTTP process starts."""

from dataclasses import dataclass

from starlette.requests import Request

from adapters.database.database import Database
from service.engine_client import EngineClient
from service.limits import Limiter
from service.metrics import Metrics
from service.settings import Settings
from service.tenants.access import Access
from service.tenants.directory import Directory
from service.tenants.keys import Keys
from service.uploads import Uploads


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The parts of the HTTP process."""

    settings: Settings
    metrics: Metrics
    client: EngineClient
    database: Database
    access: Access
    keys: Keys
    directory: Directory
    limiter: Limiter
    uploads: Uploads


def state_of(request: Request) -> ServiceState:
    """The parts of the HTTP process that the request reached."""
    state: ServiceState = request.app.state.service
    return state
