"""Bounds on request bodies: their size, whether it is announced or comes in chunks, their time, their encoding."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, BodyTooLargeError, EncodedBodyError, ServiceError
from service.settings import Settings

LINGER_S = 5.0
"""How long a client that is told no in the middle of an upload may go on sending before the connection is closed."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a body may be: so many bytes, and all of them within so many seconds.

    With ``linger`` an answer that comes before the body's end is followed by a while in which the rest is thrown away.
    Without it the connection is closed at once, and many clients that are still sending never see the answer.
    """

    max_bytes: int
    timeout: float
    linger: bool = False


def upload_bound(settings: Settings) -> Bound:
    """The bound of an adapter's files."""
    return Bound(settings.max_upload_bytes, settings.upload_timeout, linger=True)


class BodyLimit:
    """ASGI middleware that refuses a body as soon as it is too large, too slow or compressed.

    What has not arrived by then is not read into memory.

    Args:
        app: Gets the bodies that pass.
        max_bytes: Largest body; a larger one is 413.
        timeout: Seconds until the last byte has to be there, else 408.
        others: {(method, path): bound} of routes that have a bound of their own.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout: float, others: Mapping[tuple[str, str], Bound] | None = None
    ) -> None:
        self._app = app
        self._usual = Bound(max_bytes, timeout)
        self._others = others or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound = self._others.get((scope["method"], scope["path"]), self._usual)
        body = _Body(bound, scope, receive, send)
        if error := _announced(Headers(scope=scope), bound):
            await body.refuse(error)
        else:
            await self._app(scope, body.receive, body.send)


def _announced(headers: Headers, bound: Bound) -> ServiceError | None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in {"", "identity"}:
        return EncodedBodyError("The body must be sent as it is, without a Content-Encoding.")
    announced = headers.get("content-length", "0")
    return _too_large(bound) if announced.isdigit() and int(announced) > bound.max_bytes else None


def _too_large(bound: Bound) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than {bound.max_bytes} bytes.")


class _Body:
    """One request's two ends."""

    def __init__(self, bound: Bound, scope: Scope, receive: Receive, send: Send) -> None:
        self._bound = bound
        self._scope, self._receive, self._send = scope, receive, send
        self._deadline = time.monotonic() + bound.timeout
        self._seen = 0
        self._whole = self._refused = False

    async def receive(self) -> Message:
        """The next message; a body that is refused looks like a client that hung up."""
        if self._whole:  # what follows is a disconnect, whenever it comes
            return await self._receive()
        if not self._refused:
            try:
                return await self._next()
            except ServiceError as error:
                await self.refuse(error)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a reply on; what is said about a refused body that broke off is not sent."""
        if not self._refused:
            await self._pass_on(message)

    async def refuse(self, error: ServiceError) -> None:
        """Answer with an error, whatever the app says from now on."""
        self._refused = True
        detail = error.detail()
        reply = JSONResponse(detail.body(), detail.status, {"Connection": "close"})
        await reply(self._scope, self._receive, self._pass_on)

    async def _next(self) -> Message:
        """The next part of the body.

        Raises:
            BodyTooLargeError: It is one part too many.
            BodyTimeoutError: It did not come in time.
        """
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except TimeoutError as error:
            raise BodyTimeoutError(f"The body did not arrive within {self._bound.timeout:g} s.") from error
        self._seen += len(message.get("body", b""))
        if self._seen > self._bound.max_bytes:
            raise _too_large(self._bound)
        self._whole = not message.get("more_body", False)
        return message

    async def _pass_on(self, message: Message) -> None:
        if self._whole or not self._bound.linger:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._throw_away_rest()
            await self._send({"type": "http.response.body", "body": b""})

    async def _throw_away_rest(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass  # it has had its time
