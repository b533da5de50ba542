"""What administrators send."""

from typing import Annotated

from pydantic import AwareDatetime, Field

from service.schemas import Name, WireModel
from service.tenants.caller import Scope
from service.tenants.directory import LEAST_SHARE, MOST_SHARE

Label = Annotated[str, Field(max_length=128, pattern=r"^[^\x00]*$")]
Positive = Annotated[int, Field(ge=1, le=2**62)]


class Limits(WireModel):
    """PATCH /admin/v1/tenants/{tenant}: what is not named stays; null takes a limit away."""

    share: float | None = Field(
        None, ge=LEAST_SHARE, le=MOST_SHARE, description="Its share of what is contended for; 1 by default."
    )
    requests_per_minute: Positive | None = Field(None, description="Requests that may begin in a minute.")
    tokens_per_minute: Positive | None = Field(None, description="Tokens, of prompts and answers, in a minute.")
    concurrent: Positive | None = Field(None, description="Requests that may be in flight at once.")
    resident_bytes: Positive | None = Field(None, description="Bytes of its adapters in host memory.")
    disabled: bool | None = Field(None, description="Whether all of its keys stop working.")


class NewTenant(Limits):
    """POST /admin/v1/tenants."""

    name: Name = Field(description="Its name: lower-case letters, digits, '.', '_' and '-'.")


class NewKeyRequest(WireModel):
    """POST /admin/v1/keys."""

    tenant: Name | None = Field(None, description="Whose key; null makes an operator's, for every tenant.")
    scopes: list[Scope] = Field(["infer"], min_length=1, max_length=8, description="What it is for.")
    label: Label = Field("", description="What people call it.")
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        None, description="When it ends, with a time zone; null is never."
    )


class Rotation(WireModel):
    """POST /admin/v1/keys/{id}/rotate."""

    overlap: float = Field(0.0, ge=0, le=30 * 86400, description="Seconds that the old key goes on working.")
