"""Bounds on request bodies: their size, whether it is announced or comes in chunks, their time, their encoding."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, BodyTooLargeError, EncodedBodyError, ServiceError


class BodyLimit:
    """ASGI middleware that refuses a body as soon as it is too large, too slow or compressed.

    What has not arrived by then is not read into memory.

    Args:
        app: Gets the bodies that pass.
        max_bytes: Largest body; a larger one is 413.
        timeout: Seconds until the last byte has to be there, else 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif error := self._announced(Headers(scope=scope)):
            await _refuse(error, scope, receive, send)
        else:
            body = _Body(self, scope, receive, send)
            await self._app(scope, body.receive, body.send)

    def too_large(self) -> BodyTooLargeError:
        """What is answered to a larger body."""
        return BodyTooLargeError(f"The body is larger than {self._max_bytes} bytes.")

    def _announced(self, headers: Headers) -> ServiceError | None:
        encoding = headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in {"", "identity"}:
            return EncodedBodyError("The body must be sent as it is, without a Content-Encoding.")
        announced = headers.get("content-length", "0")
        return self.too_large() if announced.isdigit() and int(announced) > self._max_bytes else None

    async def next(self, receive: Receive, seen: int, deadline: float) -> Message:
        """The next part of a body of which ``seen`` bytes have come.

        Raises:
            BodyTooLargeError: It is one part too many.
            BodyTimeoutError: It did not come in time.
        """
        try:
            message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        except TimeoutError as error:
            raise BodyTimeoutError(f"The body did not arrive within {self._timeout:g} s.") from error
        if seen + len(message.get("body", b"")) > self._max_bytes:
            raise self.too_large()
        return message

    def deadline(self) -> float:
        """When a body that begins now has to be there."""
        return time.monotonic() + self._timeout


class _Body:
    """One request's two ends."""

    def __init__(self, limit: BodyLimit, scope: Scope, receive: Receive, send: Send) -> None:
        self._limit = limit
        self._scope, self._receive, self._send = scope, receive, send
        self._deadline = limit.deadline()
        self._seen = 0
        self._whole = self._refused = False

    async def receive(self) -> Message:
        """The next message; a body that is refused looks like a client that hung up."""
        if self._whole:  # what follows is a disconnect, whenever it comes
            return await self._receive()
        if not self._refused:
            try:
                message = await self._limit.next(self._receive, self._seen, self._deadline)
            except ServiceError as error:
                self._refused = True
                await _refuse(error, self._scope, self._receive, self._send)
            else:
                self._seen += len(message.get("body", b""))
                self._whole = not message.get("more_body", False)
                return message
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a reply on; what is said about a refused body that broke off is not sent."""
        if not self._refused:
            await self._send(message)


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    detail = error.detail()
    await JSONResponse(detail.body(), detail.status, {"Connection": "close"})(scope, receive, send)
