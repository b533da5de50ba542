"""An engine under requests that arrive when they please, with any number of adapters in host memory."""

import tempfile
import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import psutil

from adapters.adapter import Adapter, load_adapter
from adapters.cache import HostCache
from adapters.names import AdapterName
from adapters.store import Version
from bench.random_adapters import AdapterWriter, peft_template
from bench.systems.tenora_engine import TenoraEngine, check, tokens_in
from bench.workloads import Arrival, prompts
from service.engine.sequence import Sequence

_SPARE = 1.5
"""Memory that has to be free, as a multiple of the adapters' own bytes."""


class OpenLoop(TenoraEngine):
    """An engine fed from a host cache that holds every registered adapter.

    Args:
        base: Folder of the base.
        count: Adapters.
        rank: Of each.
        config: Fields of the engine's configuration.

    Raises:
        MemoryError: So many adapters do not fit the memory that is free.
    """

    def __init__(self, *, base: str, count: int, rank: int, **config: Any) -> None:
        super().__init__(base=base, **config)
        self._writer = AdapterWriter(self.source, peft_template(self.source, rank=rank))
        wanted = self._writer.nbytes * count
        if psutil.virtual_memory().available < _SPARE * wanted:
            raise MemoryError(f"{count} adapters take {wanted / 1e9:.1f} GB, more than what is free allows")
        self._cache = HostCache(2 * wanted, self._read)
        self._count = count
        self._fresh: dict[str, Adapter] = {}
        self._versions: list[Version] = []

    def fill(self) -> dict[str, float]:
        """Make all adapters and read them into the host cache; says how long reading took and what they hold.

        Each is written, read and checked as a store's are, and then removed: the cache is all that is asked here, and
        gigabytes that wait to be written would disturb what is measured next.
        """
        seconds = 0.0
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(self._count):
                folder = self._writer.write(number, Path(scratch) / str(number))
                name = AdapterName("bench", f"many{number}")
                start = time.perf_counter()
                adapter = load_adapter(folder, self.source, ref=str(name))
                seconds += time.perf_counter() - start
                version = Version(name, adapter.digest, folder, adapter.manifest)
                self._fresh[version.digest] = adapter
                self._cache.get(version)
                self._versions.append(version)
                for path in folder.iterdir():
                    path.unlink()
        stats = self._cache.stats()
        assert stats.entries == self._count, "the cache is too small, or two adapters are the same"
        return {"bytes": stats.nbytes, "read_ms": seconds * 1e3 / self._count}

    def _read(self, version: Version) -> Adapter:
        return self._fresh.pop(version.digest)

    def window(self, arrivals: Many[Arrival], seconds: float, settle: float) -> dict[str, Any]:
        """Serve arrivals for so long; what happened after the first ``settle`` seconds.

        Whatever is unfinished at the end is dropped.
        """
        vocabulary = self.source.config().vocab_size
        ids = [prompts(1, row.prompt_tokens, vocabulary, 40_000 + k)[0] for k, row in enumerate(arrivals)]
        live: dict[str, tuple[Sequence, float]] = {}
        first: dict[str, float] = {}
        tokens = starved = steps = at = 0
        misses, loads = self._cache.stats().misses, 0
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < seconds:
            while at < len(arrivals) and arrivals[at].at <= now:
                row = arrivals[at]
                adapter = self._cache.get(self._versions[row.adapter])
                sequence = self.submit(ids[at], adapter, row.new_tokens)
                live[sequence.request_id] = (sequence, row.at)
                at += 1
            if not self.engine.has_work():
                time.sleep(0.001)
                starved += 1
                continue
            events = check(self.engine.step())
            done = time.perf_counter() - start
            if now < settle:
                loads = self.engine.stats().adapter_loads
                continue
            steps += 1
            tokens += tokens_in(events)
            for event in events:
                if event.request_id in live and event.request_id not in first:
                    first[event.request_id] = done - live[event.request_id][1]
        elapsed = time.perf_counter() - start - settle
        stats = self.engine.stats()
        for request_id in live:
            self.engine.abort(request_id)
        return {
            "tokens_per_s": tokens / elapsed,
            "swaps_per_s": (stats.adapter_loads - loads) / elapsed,
            "store_reads": self._cache.stats().misses - misses,
            "steps": steps,
            "idle": starved,
            "first_token_s": sorted(first.values()),
        }
