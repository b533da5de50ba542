"""What the form of POST /v1/adapters may hold: its texts, and the names of its files."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from adapters.config import CONFIG_FILE
from adapters.extras import CARD_FILE, REPORT_FILE
from adapters.manifest import MANIFEST_FILE
from adapters.names import LATEST
from adapters.parcel import WEIGHTS_FILE
from service.schemas import Name, Text, WireModel

FILES = {
    "config": CONFIG_FILE,
    "weights": WEIGHTS_FILE,
    "manifest": MANIFEST_FILE,
    "card": CARD_FILE,
    "report": REPORT_FILE,
}
MAX_ALIASES = 16
ARCHIVE, PLOT = "archive", "plot"


def _one(value: Any) -> Any:
    """A field that may stand there once."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError("it is sent more than once: send it once")
    return value[0] if isinstance(value, list) else value


def _flag(value: Any) -> Any:
    text = _one(value)
    return {"true": True, "false": False}.get(text.lower(), text) if isinstance(text, str) else text


Flag = Annotated[bool, BeforeValidator(_flag)]


class UploadFields(WireModel):
    """The texts of POST /v1/adapters."""

    name: Annotated[Name, BeforeValidator(_one)] = Field(
        description="tenant/name, or the name alone for a tenant's key."
    )
    alias: list[Name] = Field(
        [LATEST], max_length=MAX_ALIASES, description="An alias to point at it; repeat for more. latest if not sent."
    )
    template: Annotated[Text | None, BeforeValidator(_one)] = Field(
        None, description="Prompt template of a plain PEFT adapter: alpaca, chat, plain, or a Jinja text."
    )
    labels: list[Name] | None = Field(None, description="A label of a plain PEFT classifier; repeat in their order.")
    multi_label: Flag = Field(False, description="A plain PEFT classifier's labels hold or not each by itself.")
    score: Flag = Field(False, description="A plain PEFT head of one number scores answers: a reward model.")
    created: Annotated[Text | None, BeforeValidator(_one)] = Field(
        None, description="When a plain PEFT adapter was made, like 2026-01-31T12:00:00+00:00: a part of its digest."
    )
    dry_run: Flag = Field(False, description="Check everything, say what would be published, and keep nothing.")

    @field_validator("created")
    @classmethod
    def _is_time(cls, text: str | None) -> str | None:
        if text is not None:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None or moment.timestamp() < 0:
                raise ValueError("a time since 1970 with its zone is wanted, like 2026-01-31T12:00:00+00:00")
        return text

    @property
    def created_at(self) -> int | None:
        """When it was made, in seconds since 1970; None if that was not said."""
        return None if self.created is None else int(datetime.fromisoformat(self.created).timestamp())


def form_schema() -> dict[str, Any]:
    """The form as the documentation page shows it."""
    schema = UploadFields.model_json_schema()
    file: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
    shown: dict[str, Any] = {field: {**file, "description": name} for field, name in FILES.items()}
    shown[PLOT] = {"type": "array", "items": file, "description": "*.png"}
    shown[ARCHIVE] = {**file, "description": "Instead of the files: a .zip, .tar or .tar.gz of them."}
    schema["properties"] |= shown
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
