"""Errors as Text Generation Inference and LoRAX have them: `{"error", "error_type"}`, on their routes only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from service.errors import ErrorDetail

TGI_PATHS = frozenset({"/", "/generate", "/generate_stream", "/info", "/health"})
_FLAG = "speaks_tgi"
_TYPES: Mapping[int, str] = {422: "validation", 424: "generation", 429: "overloaded"}


@dataclass(frozen=True, slots=True)
class TgiError:
    """An error in their terms."""

    status: int
    body: Mapping[str, Any]

    @classmethod
    def of(cls, error: ErrorDetail) -> "TgiError":
        """Translate: what is wrong with a request is 422 there, and 424 is an answer that could not be computed."""
        status = {400: 422}.get(error.status, 424 if error.code == "non_finite_logits" else error.status)
        own = error.code if error.status == 422 else _TYPES.get(status, error.code)
        return cls(status, {"error": error.message, "error_type": own})


def speak_tgi(scope: Scope) -> None:
    """Answer this request's errors in their terms, whatever its path."""
    scope.setdefault("state", {})[_FLAG] = True


def speaks_tgi(scope: Scope) -> bool:
    """Whether the request's errors are answered in their terms."""
    return scope["path"] in TGI_PATHS or bool(scope.get("state", {}).get(_FLAG))
