"""Bodies of the routes that change an adapter's versions and aliases."""

from pydantic import Field

from adapters.names import LATEST
from service.schemas import Name, WireModel


class PromoteRequest(WireModel):
    """POST /v1/adapters/{tenant}/{name}/promote."""

    alias: Name = Field(LATEST, description="The alias to move; it is made if it is not there.")
    version: Name = Field(description="The version to point it at: its digest, or a beginning of at least 8 digits.")
    force: bool = Field(False, description="Whatever the alias demands; for keys with the scope admin, and logged.")


class RollBackRequest(WireModel):
    """POST /v1/adapters/{tenant}/{name}/rollback."""

    alias: Name = Field(LATEST, description="The alias to point at what it pointed at before.")


class PinRequest(WireModel):
    """POST /v1/adapters/{tenant}/{name}/pin and /unpin."""

    version: Name = Field(description="The version: its digest, or a beginning of at least 8 digits.")
