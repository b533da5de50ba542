"""API keys: who is asking. Runs before a byte of the body is read."""

import hashlib
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import AuthenticationError
from service.openapi import DOCS_ASSETS
from service.settings import EVERY_TENANT

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""Probes carry no keys, and the documentation holds nothing of a tenant's."""


class Auth:
    """ASGI middleware that refuses requests without a key and notes the tenant of the others.

    Args:
        app: What to protect.
        keys: {key: tenant}; without any, every request passes and sees every tenant.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str]) -> None:
        self._app = app
        self._tenants = {_digest(key): tenant for key, tenant in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its tenant, or answer 401."""
        if scope["type"] != "http" or _is_open(scope["path"]) or not self._tenants:
            await self._app(scope, receive, send)
            return
        tenant = self._tenant_of(_shown_key(Headers(scope=scope)))
        if tenant is None:
            error = AuthenticationError(
                "This server wants an API key: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            ).detail()
            await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = None if tenant == EVERY_TENANT else tenant
        await self._app(scope, receive, send)

    def _tenant_of(self, key: str) -> str | None:
        # Digests have one length, and every key is compared: the time tells nothing about the keys.
        shown, found = _digest(key), None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(shown, digest):
                found = tenant
        return found


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(f"{DOCS_ASSETS}/")


def tenant_of(request: Request) -> str | None:
    """The tenant whose key the request carries; None sees every tenant."""
    tenant: str | None = getattr(request.state, "tenant", None)
    return tenant


def _shown_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
