"""The host cache: bounded in bytes whatever the threads do, one load for many, no failure kept."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter
from adapters.cache import HostCache
from adapters.errors import AdapterFormatError
from adapters.manifest import Manifest
from adapters.names import AdapterName
from adapters.store import Version


@dataclass(frozen=True)
class Sized:
    """Stands in for an adapter: the cache looks at these three."""

    digest: str
    ref: str
    nbytes: int


def version(index: int, tenant: str = "acme") -> Version:
    return Version(AdapterName(tenant, f"a{index}"), f"{index:064x}", Path(), cast(Manifest, None))


def sized(of: Version, nbytes: int) -> Adapter:
    return cast(Adapter, Sized(of.digest, str(of.name), nbytes))


def test_the_least_recently_used_leaves_first() -> None:
    cache = HostCache(30, lambda v: sized(v, 10))
    for index in (0, 1, 2, 0, 3):
        cache.get(version(index))
    assert [cache.contains(version(index)) for index in range(4)] == [True, False, True, True]
    stats = cache.stats()
    assert (stats.entries, stats.nbytes, stats.hits, stats.misses, stats.evictions) == (3, 30, 1, 4, 1)
    assert cache.discard(version(0).name, version(0).digest)
    assert not cache.discard(version(0).name, version(0).digest)
    assert cache.stats().nbytes == 20
    cache.check_integrity()


def test_an_adapter_larger_than_the_cache_is_returned_and_not_kept() -> None:
    cache = HostCache(30, lambda v: sized(v, 31 if v == version(9) else 10))
    cache.get(version(0))
    assert cache.get(version(9)).nbytes == 31
    assert not cache.contains(version(9))
    assert cache.contains(version(0))  # nothing was evicted for it


def test_what_is_pinned_stays() -> None:
    pinned = {version(0).digest}
    cache = HostCache(30, lambda v: sized(v, 20 if v == version(9) else 10), pinned.__contains__)
    for index in (0, 1, 2, 3):
        cache.get(version(index))
    assert [cache.contains(version(index)) for index in range(4)] == [True, False, True, True]
    cache.get(version(9))
    assert [cache.contains(version(index)) for index in (0, 2, 3, 9)] == [True, False, False, True]
    pinned.add(version(9).digest)
    cache.get(version(4))  # pins that take more than half give way
    assert [cache.contains(version(index)) for index in (0, 9, 4)] == [True, False, True]
    pinned.clear()
    cache.get(version(9))
    assert [cache.contains(version(index)) for index in (0, 9, 4)] == [False, True, True]
    cache.check_integrity()


def test_nobody_learns_what_anothers_load_failed_with() -> None:
    inside, go = threading.Event(), threading.Event()

    def load(wanted: Version) -> Adapter:
        if wanted.name.tenant == "zeta":
            return sized(wanted, 10)
        inside.set()
        go.wait(5)
        raise AdapterFormatError("acme's own affair")

    cache = HostCache(100, load)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(cache.get, version(1))
        assert inside.wait(5)
        same = pool.submit(cache.get, version(1, "zeta"))
        assert same.result(5).ref == "zeta/a1"
        go.set()
        with pytest.raises(AdapterFormatError):
            failing.result(5)
    cache.check_integrity()


def test_a_tenants_quota_is_kept_by_its_own_adapters() -> None:
    pinned = {version(7).digest}
    cache = HostCache(100, lambda v: sized(v, 10), pinned.__contains__, {"acme": 20}.get)
    others = [version(10 + index, "zeta") for index in range(3)]
    for one in (*others, version(0), version(1), version(0), version(2)):
        cache.get(one)
    assert [cache.contains(version(index)) for index in range(3)] == [True, False, True]
    assert all(cache.contains(one) for one in others)
    cache.get(version(7))
    cache.get(version(8))
    assert {adapter.ref for adapter in cache.resident() if adapter.ref.startswith("acme")} == {"acme/a7", "acme/a8"}
    assert cache.stats().nbytes == 50
    cache.check_integrity()


def test_an_adapter_beyond_its_tenants_quota_is_not_kept() -> None:
    cache = HostCache(100, lambda v: sized(v, 30), quota={"acme": 20}.get)
    assert cache.get(version(1)).nbytes == 30
    assert cache.resident() == []


def test_many_threads_one_load() -> None:
    loads = []
    gate = threading.Event()

    def load(of: Version) -> Adapter:
        loads.append(of)
        assert gate.wait(5)
        return sized(of, 10)

    cache = HostCache(100, load)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(cache.get, version(1)) for _ in range(16)]
        while not loads:
            time.sleep(0.001)
        gate.set()
        assert len({id(future.result()) for future in futures}) == 1
    assert len(loads) == 1
    assert (cache.stats().hits, cache.stats().misses) == (15, 1)


def test_a_slow_load_delays_only_those_who_want_it() -> None:
    gate = threading.Event()

    def load(of: Version) -> Adapter:
        if of == version(1):
            assert gate.wait(5)
        return sized(of, 10)

    cache = HostCache(100, load)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get, version(1))
        assert cache.get(version(2)).nbytes == 10
        assert not slow.done()
        gate.set()
        assert slow.result(5).nbytes == 10


def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    calls = []
    gate = threading.Event()

    def load(of: Version) -> Adapter:
        calls.append(of)
        if len(calls) == 1:
            assert gate.wait(5)
            raise AdapterFormatError("broken", key="x")
        return sized(of, 10)

    cache = HostCache(100, load)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get, version(1)) for _ in range(4)]
        while cache.stats().hits < 3:
            time.sleep(0.001)
        gate.set()
        for future in futures:
            with pytest.raises(AdapterFormatError, match="broken"):
                future.result(5)
    assert cache.get(version(1)).nbytes == 10
    assert len(calls) == 2


def test_the_same_bytes_are_shared_within_a_tenant_and_not_between_two() -> None:
    loads = []

    def load(of: Version) -> Adapter:
        loads.append(of)
        return sized(of, 10)

    cache = HostCache(100, load)
    twin = Version(AdapterName("acme", "twin"), version(1).digest, Path(), cast(Manifest, None))
    assert cache.get(version(1)).ref == "acme/a1"
    assert cache.get(twin).ref == "acme/twin"
    assert cache.get(version(1)).ref == "acme/a1"
    assert len(loads) == 1
    assert not cache.contains(version(1, "zeta"))
    assert cache.get(version(1, "zeta")).ref == "zeta/a1"
    assert (len(loads), cache.stats().nbytes) == (2, 20)
    assert cache.discard(twin.name, twin.digest)
    assert cache.contains(version(1, "zeta"))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 50),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from("gggd"), st.integers(0, 7)), max_size=60),
)
def test_the_bound_holds_after_every_operation(bound: int, sizes: list[int], operations: list[tuple[str, int]]) -> None:
    cache = HostCache(bound, lambda v: sized(v, sizes[int(v.digest, 16) % len(sizes)]))
    for operation, index in operations:
        if operation == "g":
            assert cache.get(version(index)).digest == version(index).digest
        else:
            cache.discard(version(index).name, version(index).digest)
        cache.check_integrity()
        assert cache.stats().nbytes <= bound


def test_the_bound_holds_under_threads() -> None:
    def load(of: Version) -> Adapter:
        time.sleep(0.0005)
        if int(of.digest, 16) % 7 == 0:
            raise AdapterFormatError("broken")
        return sized(of, 5 + int(of.digest, 16) % 20)

    cache = HostCache(60, load)
    stop = threading.Event()

    def use(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            index = chance.randrange(20)
            try:
                assert cache.get(version(index)).digest == version(index).digest
            except AdapterFormatError:
                assert index % 7 == 0
            if chance.random() < 0.1:
                unwanted = version(chance.randrange(20))
                cache.discard(unwanted.name, unwanted.digest)

    with ThreadPoolExecutor(8) as pool:
        users = [pool.submit(use, seed) for seed in range(8)]
        until = time.monotonic() + 1
        while time.monotonic() < until:
            cache.check_integrity()
        stop.set()
        for user in users:
            user.result(5)
    assert cache.stats().evictions > 0
