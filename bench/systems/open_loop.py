"""An engine under requests that arrive when they please, with any number of adapters in host memory."""

import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
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
from service.engine.events import FinishedEvent
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
            for number, folder in enumerate(self._written(Path(scratch))):
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

    def _written(self, scratch: Path) -> Iterator[Path]:
        """The adapters' folders in turn; while one is read the next is written."""
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self._writer.write, 0, scratch / "0")
            for number in range(1, self._count + 1):
                folder = pending.result()
                if number < self._count:
                    pending = ahead.submit(self._writer.write, number, scratch / str(number))
                yield folder

    def _read(self, version: Version) -> Adapter:
        return self._fresh.pop(version.digest)

    def window(self, arrivals: Many[Arrival], seconds: float, settle: float) -> dict[str, Any]:
        """Serve arrivals for so long; what happened after the first ``settle`` seconds.

        Times are of the requests that arrived after them. Whatever is unfinished at the end is dropped.
        """
        vocabulary = self.source.config().vocab_size
        ids = [prompts(1, row.prompt_tokens, vocabulary, 40_000 + k)[0] for k, row in enumerate(arrivals)]
        live: dict[str, tuple[Sequence, float]] = {}
        first: dict[str, float] = {}
        whole: list[float] = []
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
            for event in events:
                arrived = live[event.request_id][1]
                first.setdefault(event.request_id, done - arrived)
                if isinstance(event, FinishedEvent) and arrived >= settle:
                    whole.append(done - arrived)
            if now < settle:
                loads = self.engine.stats().adapter_loads
                continue
            steps += 1
            tokens += tokens_in(events)
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
            "first_token_s": sorted(
                first[name] for name, (_, arrived) in live.items() if arrived >= settle and name in first
            ),
            "request_s": sorted(whole),
        }
