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

from service.errors import ErrorDetail, ServiceError, describe, describe_http, describe_unreadable, describe_validation

logger = logging.getLogger(__name__)


class ErrorResponse(JSONResponse):
    """An error body. It is pure ASCII, as messages may quote what a client sent, half characters included."""

    def __init__(self, error: ErrorDetail, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.body(), error.status, {**(headers or {}), **error.headers()})

    def render(self, content: Any) -> bytes:
        """The body as ASCII."""
        return json.dumps(content).encode()


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with an OpenAI error body."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> JSONResponse:
        return ErrorResponse(error.detail())

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return ErrorResponse(describe_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            return ErrorResponse(describe_unreadable(error.__cause__))
        return ErrorResponse(describe_http(error.status_code, error.detail), error.headers)

    @app.exception_handler(Exception)
    async def other_error(request: Request, error: Exception) -> JSONResponse:
        logger.error("a request met an error of ours", exc_info=error)
        return ErrorResponse(describe(error))
