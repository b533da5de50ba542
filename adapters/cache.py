"""Adapters in host memory, bounded in bytes, shared by threads."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from adapters.adapter import Adapter
from adapters.names import AdapterName
from adapters.store import Version


@dataclasses.dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the start; ``nbytes`` and ``entries`` are now."""

    entries: int
    nbytes: int
    max_bytes: int
    hits: int
    misses: int
    evictions: int


_Key = tuple[str, str]
"""Tenant and digest. The same bytes of two tenants are two adapters: each fills its own quota, and none can tell by the
time, or by an error, what the other has."""


class HostCache:
    """Least recently used adapters leave first; each is read once however many threads ask for it.

    An adapter for which there is no room is read for whoever asks, and not kept. A failed load is not kept either.

    Args:
        max_bytes: How large all of them may be together.
        load: Reads an adapter.
        is_pinned: Whether the version of a digest is to stay once it is here, as far as pins take no more than half of
            the room; asked when there has to be room.
        quota: How large the adapters of a tenant may be together; None is without limit. To make room under it, its own
            leave.
    """

    def __init__(
        self,
        max_bytes: int,
        load: Callable[[Version], Adapter],
        is_pinned: Callable[[str], bool] = lambda _: False,
        quota: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._load = load
        self._is_pinned = is_pinned
        self._quota = quota
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, Adapter] = OrderedDict()
        self._loading: dict[_Key, Future[Adapter]] = {}
        self._nbytes = self._hits = self._misses = self._evictions = 0

    def get(self, version: Version) -> Adapter:
        """The adapter of a version, read from the store if it is not here; safe to call from any thread."""
        key = _key(version)
        adapter = self.peek(version)
        if adapter is not None:
            return adapter
        with self._lock:
            adapter = self._kept.get(key)  # read by somebody else since
            if adapter is not None:
                return _known_as(adapter, version)
            waiting = self._loading.get(key)
            future = self._loading.setdefault(key, Future())
            self._misses += waiting is None
            self._hits += waiting is not None
        if waiting is None:
            self._read(version, future)
        return _known_as(future.result(), version)

    def peek(self, version: Version) -> Adapter | None:
        """The adapter of a version if it is here, which counts as a use; never reads the store."""
        with self._lock:
            adapter = self._kept.get(_key(version))
            if adapter is None:
                return None
            self._kept.move_to_end(_key(version))
            self._hits += 1
            return _known_as(adapter, version)

    def contains(self, version: Version) -> bool:
        """Whether a version is here already."""
        with self._lock:
            return _key(version) in self._kept

    def resident(self) -> list[Adapter]:
        """All that are here now."""
        with self._lock:
            return list(self._kept.values())

    def discard(self, name: AdapterName, digest: str) -> bool:
        """Forget a version, if it is here; whoever holds the adapter keeps it."""
        with self._lock:
            return self._drop((name.tenant, digest))

    def stats(self) -> CacheStats:
        """Counters, all of one instant."""
        with self._lock:
            return CacheStats(len(self._kept), self._nbytes, self._max_bytes, self._hits, self._misses, self._evictions)

    def check_integrity(self) -> None:
        """Assert that the byte count is true and within the bound."""
        with self._lock:
            assert self._nbytes == sum(adapter.nbytes for adapter in self._kept.values())
            assert self._nbytes <= self._max_bytes

    def _read(self, version: Version, future: Future[Adapter]) -> None:
        try:
            adapter = self._load(version)
        except BaseException as error:
            with self._lock:
                del self._loading[_key(version)]
            future.set_exception(error)
            return
        with self._lock:
            del self._loading[_key(version)]
            self._keep(_key(version), adapter)
        future.set_result(adapter)

    def _keep(self, key: _Key, adapter: Adapter) -> None:
        if self._make_room(adapter, self._own(adapter), self._quota(_owner(adapter))) and self._make_room(
            adapter, self._kept, self._max_bytes
        ):
            self._kept[key] = adapter
            self._nbytes += adapter.nbytes

    def _own(self, adapter: Adapter) -> dict[_Key, Adapter]:
        """What is here of an adapter's tenant, the least recently used first."""
        owner = _owner(adapter)
        return {key: held for key, held in self._kept.items() if _owner(held) == owner}

    def _make_room(self, adapter: Adapter, among: Mapping[_Key, Adapter], most: int | None) -> bool:
        """Let go of what is not pinned until the adapter fits with the others; of nothing if that is not enough."""
        if most is None:
            return True
        over = sum(held.nbytes for held in among.values()) + adapter.nbytes - most
        loose = self._loose(among, most // 2)
        if over > sum(size for _, size in loose):
            return False
        for key, size in loose:
            if over <= 0:
                break
            self._drop(key)
            self._evictions += 1
            over -= size
        return True

    def _loose(self, among: Mapping[_Key, Adapter], most: int) -> list[tuple[_Key, int]]:
        """(key, bytes) of what may leave; pins hold ``most`` bytes, of those that were used last."""
        loose, held = [], 0
        for key, adapter in reversed(list(among.items())):
            if self._is_pinned(adapter.digest) and held + adapter.nbytes <= most:
                held += adapter.nbytes
            else:
                loose.append((key, adapter.nbytes))
        return loose[::-1]

    def _drop(self, key: _Key) -> bool:
        adapter = self._kept.pop(key, None)
        if adapter is not None:
            self._nbytes -= adapter.nbytes
        return adapter is not None


def _key(version: Version) -> _Key:
    return version.name.tenant, version.digest


def _owner(adapter: Adapter) -> str:
    return adapter.ref.partition("/")[0]


def _known_as(adapter: Adapter, version: Version) -> Adapter:
    """A tenant may have published the same bytes under two names; each gets them under its own."""
    name = str(version.name)
    return adapter if adapter.ref == name else dataclasses.replace(adapter, ref=name)
