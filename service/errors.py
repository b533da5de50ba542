"""Every error a client can meet, with its HTTP status; the one place that turns errors into OpenAI bodies.

ServiceError
├── InvalidRequestError            400  a field that is wrong, unknown or out of range
│   ├── UnsupportedParameterError  400  a parameter of OpenAI that is not served, refused by name
│   ├── WrongTaskError             400  a classifier asked to write, or a writer asked to classify
│   ├── ContextLengthError         400  prompt plus answer do not fit; the numbers are in the message
│   └── PathNotAllowedError        400  an adapter path outside the allowed folders
├── AuthenticationError            401  no key, or not one of ours
├── PermissionDeniedError          403  the key is fine, the tenant is not
├── NotFoundError                  404  something that does not exist, or is another tenant's: the same answer
│   ├── ModelNotFoundError         404  an unknown model
│   ├── AdapterUnknownError        404  an adapter to be changed
│   ├── TenantNotFoundError        404  a tenant
│   └── KeyNotFoundError           404  a key, by its id
├── BodyTimeoutError               408  the body did not arrive in time
├── TenantExistsError              409  the tenant's name is taken
├── KeyRotatedError                409  a key that was rotated already; the message names its successor
├── GateFailedError                409  a version lacks what the alias demands of it
├── BodyTooLargeError              413  more bytes than the limit
├── EncodedBodyError               415  a compressed body
├── QueueFullError                 429  the queue is full; Retry-After says when to come back
├── RateLimitedError               429  the tenant's own limit; the message names it, Retry-After says when to come back
├── ClientGoneError                499  the client closed the connection; nobody reads this one
├── ServerError                    500  our own fault
├── EngineUnavailableError         503  the engine is starting, or died under the request
├── DeadlineExceededError          504  the request's time is up
└── StorageFullError               507  no room on the server's disk

The errors of `adapters` keep their own classes; the table below gives each its status (400, 404, 409, 422, 500 or 503).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from adapters.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterFormatError,
    AdapterMismatchError,
    AdapterNameError,
    AdapterNotFoundError,
    AdapterUnsupportedError,
    BaseModelError,
    StateError,
    TemplateError,
)

_SHOWN = 500
logger = logging.getLogger(__name__)
UNION_TAGS = ("<text>", "<list>", "<ids>", "<id lists>", "<object>")
"""What pydantic puts into the path of a field that may be one of several things; no client's word."""


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """An error as plain values, so that it can cross the border between processes."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after: int | None = None
    more_headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        """The OpenAI error body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Reply headers that belong to the error."""
        headers = dict(self.more_headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="tenora"'
        return headers


class ServiceError(Exception):
    """Base of all errors that are answered with a status of their own."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def detail(self) -> ErrorDetail:
        """The error as plain values."""
        return ErrorDetail(self.status, self.message, self.type, self.code, self.param, self.retry_after)


class InvalidRequestError(ServiceError):
    """A field that is wrong, unknown or out of range."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnsupportedParameterError(InvalidRequestError):
    """A parameter that cannot be honoured; it is never dropped silently."""

    code = "unsupported_parameter"


class WrongTaskError(InvalidRequestError):
    """The adapter is for another task; the message names the route to call."""

    code = "wrong_task"


class ContextLengthError(InvalidRequestError):
    """The prompt and the answer asked for do not fit into the context."""

    code = "context_length_exceeded"


class PathNotAllowedError(InvalidRequestError):
    """A path outside the folders that adapters may be imported from."""

    code = "path_not_allowed"


class AuthenticationError(ServiceError):
    """No API key, or an unknown one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class PermissionDeniedError(ServiceError):
    """The key does not cover what was asked for."""

    status, type, code = 403, "permission_error", "permission_denied"


class NotFoundError(ServiceError):
    """No such thing for this key; the same answer whether it exists for another tenant or not."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFoundError(NotFoundError):
    """No such model for this key."""

    code = "model_not_found"

    def __init__(self, model: str, *, param: str = "model") -> None:
        super().__init__(f"The model `{shorten(model)}` does not exist or this key has no access to it.", param=param)


class AdapterUnknownError(NotFoundError):
    """No such adapter for this key."""

    code = "adapter_not_found"

    def __init__(self, adapter: str, *, param: str = "adapter") -> None:
        message = f"The adapter `{shorten(adapter)}` does not exist or this key has no access to it."
        super().__init__(message, param=param)


class TenantNotFoundError(NotFoundError):
    """No such tenant for this key."""

    code = "tenant_not_found"

    def __init__(self, tenant: str) -> None:
        super().__init__(f"There is no tenant `{shorten(tenant)}`, or this key has no access to it.", param="tenant")


class KeyNotFoundError(NotFoundError):
    """No such key for this key."""

    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key `{shorten(key_id)}`, or this key has no access to it.", param="id")


class TenantExistsError(ServiceError):
    """There is a tenant of that name."""

    status, type, code = 409, "invalid_request_error", "tenant_exists"

    def __init__(self, tenant: str) -> None:
        super().__init__(f"There is a tenant `{shorten(tenant)}` already.", param="name")


class KeyRotatedError(ServiceError):
    """The key has a successor already; one rotated again would leave two, of which the older ends with it."""

    status, type, code = 409, "invalid_request_error", "key_rotated"

    def __init__(self, key_id: str, successor: str) -> None:
        super().__init__(
            f"The key {shorten(key_id)} was rotated already, and ends by itself: its successor is {successor}. "
            "Rotate that one, or make a new key.",
            param="id",
        )


class GateFailedError(ServiceError):
    """A version lacks something that the alias demands; what, is in the message and kept with the version."""

    status, type, code = 409, "invalid_request_error", "gate_failed"

    def __init__(self, what: str, alias: str, failed: Sequence[str]) -> None:
        super().__init__(
            f"{what} does not pass the gate of '{alias}': {'; '.join(failed)}. Nothing was moved; a key with the scope "
            "'admin' can force it.",
            param="version",
        )


class BodyTimeoutError(ServiceError):
    """The body took longer to arrive than it may."""

    status, type, code = 408, "invalid_request_error", "body_timeout"


class EncodedBodyError(ServiceError):
    """The body is compressed, which is not undone here: a few bytes could become gigabytes."""

    status, type, code = 415, "invalid_request_error", "unsupported_encoding"


class BodyTooLargeError(ServiceError):
    """The body has more bytes than the limit."""

    status, type, code = 413, "invalid_request_error", "body_too_large"


class QueueFullError(ServiceError):
    """As many sequences as allowed are in flight."""

    status, type, code = 429, "rate_limit_error", "queue_full"


class RateLimitedError(ServiceError):
    """The tenant goes beyond a limit of its own; the reply carries OpenAI's x-ratelimit-* headers."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = dict(headers or {})

    def detail(self) -> ErrorDetail:
        """The error as plain values."""
        return replace(super().detail(), more_headers=tuple(self.headers.items()))


class ClientGoneError(ServiceError):
    """The client closed the connection before the answer was ready."""

    status, type, code = 499, "invalid_request_error", "client_closed_request"


class ServerError(ServiceError):
    """Something of ours went wrong."""


class EngineUnavailableError(ServiceError):
    """The engine is not there: starting, stopping, or died under the request."""

    status, type, code = 503, "server_error", "engine_unavailable"


class DeadlineExceededError(ServiceError):
    """The request's time is up."""

    status, type, code = 504, "server_error", "deadline_exceeded"


class StorageFullError(ServiceError):
    """There is no room on the server's disk for what was sent."""

    status, type, code = 507, "server_error", "storage_full"


class ReportedError(ServiceError):
    """An error that arrived as plain values from the engine process."""

    def __init__(self, detail: ErrorDetail) -> None:
        super().__init__(detail.message, param=detail.param, retry_after=detail.retry_after)
        self._detail = detail

    def detail(self) -> ErrorDetail:
        """The error as it was reported."""
        return self._detail


_ADAPTER_ERRORS: Mapping[type[AdapterError], tuple[int, str]] = {
    AdapterNameError: (400, "invalid_adapter_name"),
    AdapterNotFoundError: (404, "model_not_found"),
    AdapterExistsError: (409, "adapter_conflict"),
    AdapterFormatError: (422, "adapter_invalid"),
    AdapterUnsupportedError: (422, "adapter_unsupported"),
    AdapterMismatchError: (422, "adapter_mismatch"),
    TemplateError: (400, "template_error"),
    StateError: (503, "state_unavailable"),
    BaseModelError: (500, "base_model_error"),
}

_ENGINE_FAILURES: Mapping[str, tuple[int, str]] = {
    "deadline_exceeded": (504, "server_error"),
    "non_finite_logits": (500, "server_error"),
    "adapter_too_large": (422, "invalid_request_error"),
    "engine_failure": (503, "server_error"),
}

_HTTP_CODES: Mapping[int, str] = {400: "invalid_json", 404: "route_not_found", 405: "method_not_allowed"}


def describe(error: Exception) -> ErrorDetail:
    """Turn any exception into what the client is told; an unknown one becomes a plain 500."""
    if isinstance(error, ServiceError):
        return error.detail()
    if isinstance(error, AdapterError):
        return _describe_adapter_error(error)
    return ServerError("The server met an error of its own; its log has the details.").detail()


def is_defect(error: Exception) -> bool:
    """Whether an error is one of ours, whose traceback belongs into the log."""
    return not isinstance(error, ServiceError | StateError) and describe(error).status >= 500


def describe_failure(code: str, message: str) -> ErrorDetail:
    """Turn a failure that the engine reported for a sequence into what the client is told."""
    status, kind = _ENGINE_FAILURES.get(code, (500, "server_error"))
    return ErrorDetail(status, message, kind, code, retry_after=1 if status == 503 else None)


def describe_http(status: int, message: str) -> ErrorDetail:
    """An error that the web framework raised: an unknown route, a wrong method, a body it could not read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ErrorDetail(status, message, kind, _HTTP_CODES.get(status, "http_error"))


def describe_unreadable(cause: BaseException | None) -> ErrorDetail:
    """Why the web framework could not read a body."""
    match cause:
        case UnicodeDecodeError():
            reason = "is not UTF-8"
        case RecursionError():
            reason = "is nested too deep"
        case ValueError():
            reason = "holds a number with too many digits"
        case _:
            reason = "could not be read"
    return ErrorDetail(400, f"The body {reason}.", "invalid_request_error", "invalid_json")


def describe_validation(problems: Sequence[Mapping[str, Any]]) -> ErrorDetail:
    """Name every wrong field of a body, the first one as ``param``."""
    if not problems:
        return InvalidRequestError("The request is not valid.").detail()
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it ends early")
        return ErrorDetail(400, f"The body is not JSON: {reason}.", "invalid_request_error", "invalid_json")
    unknown = first["type"] == "extra_forbidden"
    code = "unknown_field" if unknown else "missing_field" if first["type"] == "missing" else "invalid_value"
    context = first.get("ctx", {}).get("error")
    if isinstance(context, UnsupportedParameterError):
        where = _location([*first["loc"], context.param or ""])
        return replace(
            context.detail(), message=context.message.replace(f"'{context.param}'", f"'{where}'"), param=where
        )
    message = "; ".join(dict.fromkeys(_problem(problem) for problem in problems[:5]))
    return ErrorDetail(400, message, "invalid_request_error", code, _location(first["loc"]) or None)


def shorten(text: str) -> str:
    """Cut what a client sent before it is put into a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _describe_adapter_error(error: AdapterError) -> ErrorDetail:
    status, code = next(
        (found for kind, found in _ADAPTER_ERRORS.items() if isinstance(error, kind)), (500, "adapter_error")
    )
    kind = "invalid_request_error" if status < 500 else "server_error"
    if isinstance(error, StateError):  # its message names places that are no client's business
        logger.warning("%s", error)
        message = "The server's database cannot be used at the moment; try again."
        return ErrorDetail(status, message, kind, code, retry_after=2)
    return ErrorDetail(status, error.message, kind, code, error.key)


def _problem(problem: Mapping[str, Any]) -> str:
    where = _location(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where} is not a field of this request"
    if problem["type"] == "missing":
        return f"{where or 'The body'} is required"
    if not where:
        return _body_problem(problem)
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _body_problem(problem: Mapping[str, Any]) -> str:
    if problem["type"] in {"model_attributes_type", "model_type", "dict_type"}:
        return "The body must be a JSON object, sent with Content-Type: application/json"
    return str(problem["msg"]).removeprefix("Value error, ")


def _location(parts: Sequence[str | int]) -> str:
    """``("body", "messages", 0, "content")`` as ``messages[0].content``; names of union members are left out."""
    text = ""
    for part in parts[1:] if parts and parts[0] in ("body", "query", "path") else parts:
        if part in UNION_TAGS:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() or not text:
            text += f".{shorten(part)}" if text else shorten(part)
    return text
