"""Who asks: the tenant and the scopes of the key that a request carries."""

from dataclasses import dataclass
from typing import Literal, get_args

from starlette.requests import Request

from adapters.names import AdapterName
from service.errors import AdapterUnknownError, PermissionDeniedError
from service.limits import TenantLimits

Scope = Literal["infer", "publish", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""infer: use adapters; publish: bring, promote and delete them; train: start trainings; admin: all of it, and keys."""

ANONYMOUS = "anonymous"
UNLIMITED = TenantLimits()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. A caller without a tenant sees every tenant."""

    tenant: str | None
    scopes: frozenset[str]
    key_id: str
    """Names the key in the audit log; never the key itself."""
    limits: TenantLimits = UNLIMITED
    """What its tenant may use."""

    @property
    def is_operator(self) -> bool:
        """Whether this is somebody who runs the server, not one of its tenants."""
        return self.tenant is None and "admin" in self.scopes

    def check(self, scope: Scope) -> None:
        """Refuse what the key is not for.

        Raises:
            PermissionDeniedError: The key lacks the scope.
        """
        if scope not in self.scopes and "admin" not in self.scopes:
            raise PermissionDeniedError(
                f"This key has no scope '{scope}' (it has: {', '.join(sorted(self.scopes))}): ask for one that has it."
            )


EVERYBODY = Caller(None, frozenset(SCOPES), ANONYMOUS)
"""Whoever reaches a server that has no keys."""


def caller_of(request: Request) -> Caller:
    """Who asks; on a server without keys everybody may do everything."""
    caller: Caller = getattr(request.state, "caller", EVERYBODY)
    return caller


def owned(request: Request, tenant: str, name: str) -> AdapterName:
    """The adapter that a path names, if it is the caller's to change.

    Raises:
        AdapterNameError: It is no name.
        AdapterUnknownError: It is another tenant's, whether it exists or not.
    """
    adapter, caller = AdapterName(tenant, name), caller_of(request)
    if caller.tenant is not None and tenant != caller.tenant:
        raise AdapterUnknownError(str(adapter))
    return adapter
