"""Which scope each route asks of a key, found by method and path before the route itself is."""

from collections.abc import Callable, Iterable
from typing import Protocol

from starlette.routing import compile_path

from service.tenants.caller import Scope


class Scoped(Protocol):
    """A route, as far as it matters here."""

    @property
    def method(self) -> str:
        """Its one method."""

    @property
    def path(self) -> str:
        """Its path, with parameters in braces."""

    @property
    def scope(self) -> Scope | None:
        """What it asks for; None if any key will do."""


def scope_finder(routes: Iterable[Scoped]) -> Callable[[str, str], Scope | None]:
    """A function from method and path to the scope; what is no route asks for nothing, and is answered 404 or 405."""
    table = [(route.method, compile_path(route.path)[0], route.scope) for route in routes]

    def scope_of(method: str, path: str) -> Scope | None:
        return next((scope for known, regex, scope in table if known == method and regex.match(path)), None)

    return scope_of
