"""Names of adapters: `tenant/name`, `tenant/name@digest`, `tenant/name:alias`.

Names become folder names, so the alphabet is the smallest one that is still pleasant to type.
"""

import re
from dataclasses import dataclass

from adapters.errors import AdapterNameError

LATEST = "latest"
_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9a-f]{8,64}")
_RULE = "use lower-case letters, digits, '.', '_' and '-' (at most 64, beginning with a letter or a digit, no '..')"


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """An adapter of a tenant, whatever its version."""

    tenant: str
    name: str

    def __post_init__(self) -> None:
        check_part(self.tenant, "tenant")
        check_part(self.name, "name")

    @classmethod
    def parse(cls, text: str) -> "AdapterName":
        """Read ``tenant/name``."""
        tenant, slash, name = text.partition("/")
        if not slash:
            raise AdapterNameError(f"{_shown(text)} is not an adapter name: write tenant/name", key="name")
        return cls(tenant, name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """What a request asks for: a name and at most one of a version (digest prefix) and an alias."""

    name: AdapterName
    version: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.alias is not None:
            raise AdapterNameError("give a version or an alias, not both", key="version")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            message = f"{_shown(self.version)} is not a version: write at least 8 hex digits of its digest"
            raise AdapterNameError(message, key="version")
        if self.alias is not None:
            check_part(self.alias, "alias")

    @classmethod
    def parse(cls, text: str, default_tenant: str | None = None) -> "AdapterRef":
        """Read ``t/n``, ``t/n@DIGEST`` or ``t/n:ALIAS``; with a default tenant the ``t/`` may be left out."""
        version = alias = None
        name = text
        if "@" in text:
            name, _, version = text.partition("@")
        elif ":" in text:
            name, _, alias = text.partition(":")
        if "/" not in name and default_tenant is not None:
            return cls(AdapterName(default_tenant, name), version, alias)
        return cls(AdapterName.parse(name), version, alias)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        return f"{self.name}:{self.alias}" if self.alias is not None else str(self.name)


def check_part(part: str, what: str) -> None:
    """Refuse a tenant, name or alias that is not one; ``what`` names it in the message."""
    if not _PART.fullmatch(part) or ".." in part:
        raise AdapterNameError(f"{_shown(part)} is not a valid {what}: {_RULE}", key=what)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")
