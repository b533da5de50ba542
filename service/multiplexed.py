"""Ray Serve's header `serve_multiplexed_model_id`, which names a request's model beside, or instead of, its body."""

import json
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InvalidRequestError
from service.handlers import error_response
from service.tgi_errors import TGI_PATHS
from service.tgi_schemas import INPUTS, classify_form

HEADER = "serve_multiplexed_model_id"
OPENAI_PATHS = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/instruct", "/v1/classify", "/classify", "/v1/score",
})  # fmt: skip


class MultiplexedModel:
    """ASGI middleware that puts the header's model into bodies that name none.

    It stands inside the bound on bodies, as it reads them whole; requests without the header pass untouched.

    Args:
        app: Gets the body as if the client had written the model into it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400 if header and body name two models."""
        named = Headers(scope=scope).get(HEADER) if _names_models(scope) else None
        if named is None:
            await self._app(scope, receive, send)
            return
        messages = await _whole_body(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            read = json.loads(body)
        except (ValueError, RecursionError):
            read = None  # the route says what is wrong with it
        if isinstance(read, dict):
            try:
                body = json.dumps(_with_model(scope["path"], read, named)).encode()
            except InvalidRequestError as error:
                await error_response(scope, error.detail())(scope, receive, send)
                return
            messages = [{"type": "http.request", "body": body, "more_body": False}]
        await self._app(scope, _replay(messages, receive), send)


def _names_models(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in OPENAI_PATHS | TGI_PATHS


def _with_model(path: str, body: dict[str, Any], named: str) -> dict[str, Any]:
    if path not in TGI_PATHS and classify_form(body) != INPUTS:
        return _agreed(body, "model", named)
    parameters = body.get("parameters")
    if parameters is None or isinstance(parameters, dict):
        return {**body, "parameters": _agreed(parameters or {}, "adapter_id", named)}
    return body


def _agreed(fields: MutableMapping[str, Any], field: str, named: str) -> dict[str, Any]:
    """The fields with the model in.

    Raises:
        InvalidRequestError: They name another one.
    """
    given = fields.get(field)
    if given is not None and given != named:
        message = f"The header {HEADER} and '{field}' name different models: send one of them."
        raise InvalidRequestError(message, param=field)
    return {**fields, field: named}


async def _whole_body(receive: Receive) -> list[Message]:
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """What was received, once more, then what follows."""
    waiting = iter(messages)

    async def replay() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replay
