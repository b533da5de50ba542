"""API keys: who is asking, and for what. Runs before a byte of the body is read."""

from collections.abc import Callable

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.errors import AdapterError
from service.errors import AuthenticationError, InvalidRequestError, ServiceError, describe
from service.handlers import error_response
from service.openapi import DOCS_ASSETS
from service.tenants.access import Access
from service.tenants.caller import Caller, caller_of
from service.tenants.caller import Scope as KeyScope

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/health", "/docs", "/openapi.json"})
"""Probes carry no keys, and the documentation holds nothing of a tenant's."""


class Auth:
    """ASGI middleware that refuses requests without a key, or with one that is for something else.

    Args:
        app: What to protect; it finds the caller by `caller_of`.
        access: Knows the keys.
        scope_of: The scope that a method and a path need; None if any key will do.
    """

    def __init__(self, app: ASGIApp, access: Access, scope_of: Callable[[str, str], KeyScope | None]) -> None:
        self._app = app
        self._access = access
        self._scope_of = scope_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller, or answer 401 or 403."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            if "\x00" in scope["path"] or b"%00" in scope["query_string"]:  # no name has one, and no database takes it
                raise InvalidRequestError("The URL holds a NUL character, which nothing here has in its name.")
            asking = await self._caller(_shown_key(Headers(scope=scope)))
            needed = self._scope_of(scope["method"], scope["path"])
            if needed is not None:
                asking.check(needed)
        except (ServiceError, AdapterError) as error:
            await error_response(scope, describe(error))(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = asking
        await self._app(scope, receive, send)

    async def _caller(self, key: str) -> Caller:
        found = self._access.known(key) or await to_thread.run_sync(self._access.find, key)
        if found is None:
            what = "This key is not valid, or not any more" if key else "This server wants an API key"
            raise AuthenticationError(f"{what}: send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")
        return found


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(f"{DOCS_ASSETS}/")


def tenant_of(request: Request) -> str | None:
    """The tenant whose key the request carries; None sees every tenant."""
    return caller_of(request).tenant


def _shown_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
