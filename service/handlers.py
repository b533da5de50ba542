"""The one place where exceptions become replies."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from adapters.errors import AdapterError
from service.errors import ErrorDetail, ServiceError, describe, describe_http, describe_unreadable, describe_validation
from service.record import REQUEST_ID, record_of
from service.tgi_errors import TgiError, speak_tgi, speaks_tgi
from service.tgi_schemas import INPUTS, classify_form

CLASSIFY_PATHS = frozenset({"/classify", "/v1/classify"})

logger = logging.getLogger(__name__)


class ErrorResponse(JSONResponse):
    """An error body. It is pure ASCII, as messages may quote what a client sent, half characters included."""

    def __init__(self, error: ErrorDetail, headers: Mapping[str, str] | None = None, *, tgi: bool = False) -> None:
        shown = TgiError.of(error) if tgi else None
        body, status = (error.body(), error.status) if shown is None else (shown.body, shown.status)
        super().__init__(body, status, {**(headers or {}), **error.headers()})

    def render(self, content: Any) -> bytes:
        """The body as ASCII."""
        return json.dumps(content).encode()


def error_response(scope: Scope, error: ErrorDetail, headers: Mapping[str, str] | None = None) -> ErrorResponse:
    """An error in the terms of the interface that the request speaks."""
    return ErrorResponse(error, headers, tgi=speaks_tgi(scope))


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with an error body."""

    @app.exception_handler(ServiceError)
    @app.exception_handler(AdapterError)
    async def told_error(request: Request, error: ServiceError | AdapterError) -> JSONResponse:
        return error_response(request.scope, describe(error))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        if request.scope["path"] in CLASSIFY_PATHS and classify_form(error.body) == INPUTS:
            speak_tgi(request.scope)
        return error_response(request.scope, describe_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            return error_response(request.scope, describe_unreadable(error.__cause__))
        return error_response(request.scope, describe_http(error.status_code, error.detail), error.headers)

    @app.exception_handler(Exception)
    async def other_error(request: Request, error: Exception) -> JSONResponse:
        logger.error("a request met an error of ours", exc_info=error)
        # Answered outside all middleware, which could not add the header any more.
        headers = {REQUEST_ID: record_of(request.scope).request_id}
        return error_response(request.scope, describe(error), headers)
