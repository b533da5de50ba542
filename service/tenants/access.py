"""Says whose key a request carries. A key that was just found good is believed for a second."""

import hashlib
import hmac
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from cachetools import TTLCache

from adapters.database.database import now
from service.settings import EVERY_TENANT
from service.tenants.caller import EVERYBODY, SCOPES, Caller
from service.tenants.directory import Directory
from service.tenants.keys import Keys

BELIEVED_S = 1.0
"""A key that is revoked elsewhere works so long at most; one revoked through this process ends at once."""
_REMEMBERED = 4096


class Access:
    """Checks keys; any thread may ask.

    Args:
        keys: The keys in the database.
        directory: The tenants, for their limits.
        fixed: {key: tenant} from the settings; they have all scopes, and `*` is an operator's.
        open_without_keys: Whether everybody may do everything while there is not one key.
    """

    def __init__(self, keys: Keys, directory: Directory, fixed: Mapping[str, str], *, open_without_keys: bool) -> None:
        self._keys = keys
        self._directory = directory
        self._fixed = {_digest(key): _fixed_caller(key, tenant) for key, tenant in fixed.items()}
        self._open = open_without_keys and not fixed
        self._open_until = 0.0
        self._found: TTLCache[bytes, tuple[Caller, float]] = TTLCache(_REMEMBERED, BELIEVED_S)
        """Callers with the moment until which they are believed."""
        self._generation = 0
        """Counts the changes that were made through this process."""
        self._lock = threading.Lock()

    def known(self, shown: str) -> Caller | None:
        """The caller of a key, if it was found in the last second; None says nothing."""
        if time.monotonic() < self._open_until:
            return EVERYBODY
        with self._lock:
            caller, until = self._found.get(_digest(shown), (None, 0.0))
        return caller if time.monotonic() < until else None

    def find(self, shown: str) -> Caller | None:
        """The caller of a key, as the settings and the database know it; None if it is good for nothing."""
        if self.is_open():
            return EVERYBODY
        generation, until = self._generation, time.monotonic() + BELIEVED_S
        caller, ends = self._find_fixed(shown), None
        if caller is None:
            caller, ends = self._keys.find(shown) or (None, None)
        if caller is not None and (ends is None or (ends - now()).total_seconds() > BELIEVED_S):
            with self._lock:
                if generation == self._generation:  # what was read before a change is not believed after it
                    self._found[_digest(shown)] = caller, until
        return caller

    def _find_fixed(self, shown: str) -> Caller | None:
        # Digests have one length, and every key is compared: the time tells nothing about the keys.
        digest, found = _digest(shown), None
        for fixed, caller in self._fixed.items():
            if hmac.compare_digest(digest, fixed):
                found = caller
        if found is None or found.tenant is None:
            return found
        limits = self._directory.limits(found.tenant)
        return None if limits is None else replace(found, limits=limits)

    def is_open(self) -> bool:
        """Whether everybody may do everything, as there never was a key."""
        self._open = self._open and not self._keys.any()
        if self._open:
            self._open_until = time.monotonic() + BELIEVED_S
        return self._open

    def forget(self) -> None:
        """Believe nothing any more, because keys or tenants were changed."""
        self._open_until = 0.0
        with self._lock:
            self._generation += 1
            self._found.clear()


def _fixed_caller(key: str, tenant: str) -> Caller:
    every = tenant == EVERY_TENANT
    scopes = frozenset(SCOPES) if every else frozenset(SCOPES) - {"admin"}
    return Caller(None if every else tenant, scopes, f"fixed-{_digest(key).hex()[:8]}")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
