"""Every error has a status, a code and a body."""

import json
import pickle
from collections.abc import Iterator

import pytest

from adapters import errors as adapter_errors
from adapters.errors import AdapterError
from service import errors
from service.catalog import LoraNotFoundError
from service.errors import ErrorDetail, ModelNotFoundError, ReportedError, ServiceError, describe, describe_failure
from service.handlers import ErrorResponse
from service.schemas import UnsupportedFieldError

STATUSES = {
    "InvalidRequestError": 400, "UnsupportedParameterError": 400, "WrongTaskError": 400, "ContextLengthError": 400,
    "PathNotAllowedError": 400, "AuthenticationError": 401, "PermissionDeniedError": 403, "ModelNotFoundError": 404,
    "BodyTimeoutError": 408, "BodyTooLargeError": 413, "EncodedBodyError": 415, "QueueFullError": 429,
    "ClientGoneError": 499, "ServerError": 500, "EngineUnavailableError": 503, "DeadlineExceededError": 504,
    "StorageFullError": 507, "RateLimitedError": 429, "NotFoundError": 404, "AdapterUnknownError": 404,
    "TenantNotFoundError": 404, "KeyNotFoundError": 404, "TenantExistsError": 409, "GateFailedError": 409,
    "KeyRotatedError": 409,
}  # fmt: skip
ADAPTER_STATUSES = {
    "AdapterNameError": 400, "AdapterNotFoundError": 404, "AdapterExistsError": 409, "AdapterFormatError": 422,
    "AdapterUnsupportedError": 422, "AdapterMismatchError": 422, "TemplateError": 400, "BaseModelError": 500,
    "StateError": 503,
}  # fmt: skip


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_tree_is_complete_and_drawn() -> None:
    names = {kind.__name__ for kind in subclasses(ServiceError) if kind.__module__ == errors.__name__}
    assert names - {"ReportedError"} == set(STATUSES)
    drawing = errors.__doc__ or ""
    for name, status in STATUSES.items():
        line = next(line for line in drawing.splitlines() if name in line)
        assert str(status) in line
    assert {kind.__name__ for kind in subclasses(AdapterError)} == set(ADAPTER_STATUSES)


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_service_errors(name: str, status: int) -> None:
    more = {"GateFailedError": ("stable", ["differs: it does not"]), "KeyRotatedError": ("0123456789ab",)}
    error = getattr(errors, name)("something", *more.get(name, ()))
    detail = describe(error)
    assert detail.status == status
    assert detail.code
    assert "something" in detail.message
    body = json.loads(bytes(ErrorResponse(detail).body))
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("name", "status"), ADAPTER_STATUSES.items())
def test_adapter_errors(name: str, status: int) -> None:
    detail = describe(getattr(adapter_errors, name)("something", key="field"))
    assert detail.status == status
    if name == "StateError":  # its places are no client's business
        assert "something" not in detail.message
    else:
        assert (detail.message, detail.param) == ("something", "field")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("deadline_exceeded", 504),
        ("non_finite_logits", 500),
        ("adapter_too_large", 422),
        ("engine_failure", 503),
        ("new", 500),
    ],
)
def test_engine_failures(code: str, status: int) -> None:
    detail = describe_failure(code, "why")
    assert (detail.status, detail.code, detail.message) == (status, code, "why")


def test_a_defect_tells_no_secrets() -> None:
    detail = describe(KeyError("/secret/path"))
    assert detail.status == 500
    assert "secret" not in detail.message


def test_details_cross_process_borders() -> None:
    detail = ErrorDetail(429, "full", "rate_limit_error", "queue_full", None, 3)
    assert pickle.loads(pickle.dumps(detail)) == detail
    assert ReportedError(detail).detail() is detail
    assert detail.headers() == {"Retry-After": "3"}
    assert ErrorDetail(401, "", "", "").headers()["WWW-Authenticate"].startswith("Bearer")


def test_half_characters_in_messages_can_be_sent() -> None:
    body = bytes(ErrorResponse(describe(ModelNotFoundError("\ud800"))).body)
    assert body.isascii()


def test_long_names_are_shortened() -> None:
    assert len(describe(ModelNotFoundError("x" * 10_000)).message) < 700


def test_errors_with_their_own_words() -> None:
    assert describe(LoraNotFoundError("gone", param="lora_name")).message == "gone"
    assert describe(UnsupportedFieldError("tools")).code == "unsupported_parameter"
