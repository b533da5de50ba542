"""`tenora.json`: what an adapter's weights cannot say about themselves."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from adapters.errors import AdapterFormatError
from adapters.files import read_text

MANIFEST_FILE = "tenora.json"
Task = Literal["generate", "classify", "score"]
ProblemType = Literal["single_label", "multi_label"]
Side = Literal["left", "right"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseRef(_Frozen):
    """The base model that the adapter belongs to."""

    id: str
    revision: str | None = None
    fingerprint: Digest


class Golden(_Frozen):
    """One instruction and the token ids that its prompt had when the adapter was trained."""

    instruction: str
    input: str = ""
    ids: tuple[int, ...]


class PromptSpec(_Frozen):
    """The prompt template by kind and text; ``sha256`` is over the text."""

    template: Literal["alpaca", "chat", "plain", "jinja"]
    text: str
    sha256: Digest
    golden: Golden


class EosSpec(_Frozen):
    """The token that ends an answer."""

    text: str
    id: int


class Manifest(_Frozen):
    """Everything that serving needs beside the weights, and where the adapter came from.

    generate    prompt                  writes what follows a prompt
    classify    labels, problem_type    says which label a text has, or (multi_label) which of them
    score       prompt, eos             gives an answer to a prompt one number: a reward model
    """

    format: Literal[1] = 1
    task: Task
    base: BaseRef
    prompt: PromptSpec | None = None
    labels: tuple[str, ...] | None = None
    problem_type: ProblemType = "single_label"
    max_length: int = Field(gt=0)
    truncation_side: Side = "right"
    eos: EosSpec | None = None
    data_sha256: Digest | None = None
    recipe: dict[str, JsonValue] = {}
    metrics: dict[str, JsonValue] = {}
    created: str
    tools: dict[str, str] = {}

    @field_validator("created")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError("a time in UTC is wanted, like 2026-01-31T12:00:00+00:00")
        return value

    @model_validator(mode="after")
    def _fits_task(self) -> Self:
        if self.task == "generate" and (self.prompt is None or self.labels is not None):
            raise ValueError("an adapter that generates has a prompt and no labels")
        if self.task == "classify" and (not self.labels or self.prompt is not None):
            raise ValueError("an adapter that classifies has labels and no prompt")
        if self.task == "score" and (self.prompt is None or self.eos is None or self.labels is not None):
            raise ValueError("an adapter that scores has a prompt, an eos and no labels")
        if self.task != "classify" and self.multi_label:
            raise ValueError("problem_type multi_label is for adapters that classify")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError("two labels are the same")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether each label holds or not by itself, instead of one out of all."""
        return self.problem_type == "multi_label"


def utc_now() -> str:
    """The time as a manifest writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``tenora.json`` in ``folder``."""
    text = read_text(folder / MANIFEST_FILE)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{MANIFEST_FILE}: {place or 'the manifest'}: {first['msg']}"
        raise AdapterFormatError(message, key=place or MANIFEST_FILE) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``tenora.json`` into ``folder``."""
    # The usual problem type is left out, as it was before there was another: the same adapter keeps its digest.
    text = manifest.model_dump_json(indent=2, exclude=None if manifest.multi_label else {"problem_type"})
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
