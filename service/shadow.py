"""Runs requests a second time under another version, for nobody to see.

A shadow begins when its request is through to the engine. It is prepared in one thread that gives way, computed for a
tenant of its own with next to no share, and whatever becomes of it is told to the comparison alone.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from adapters.cache import HostCache
from service.catalog import Catalog
from service.comparison import Part
from service.encode import Encoder, check_task
from service.engine.sequence import Sequence
from service.messages import Generate, Work
from service.priority import give_way
from service.splits import labels_of

PREFIX = "shadow-"
"""What the ids of shadows begin with; those of requests are hexadecimal."""
SHARE = 0.01
"""Of what its tenant is due, the part that a shadow's is."""
MOST_PREPARING, MOST_WAITING = 32, 16
"""Shadows that may wait to be prepared, and sequences that may wait for the engine; beyond that shadows are dropped."""

logger = logging.getLogger(__name__)


def is_shadow(request_id: str) -> bool:
    """Whether an id is a shadow's."""
    return request_id.startswith(PREFIX)


class Shadows:
    """Prepares shadows.

    Args:
        catalog: Knows the versions, and counts.
        cache: Adapters in host memory.
        encoder: Renders and tokenises.
        hand_over: Takes the shadow's id, its sequences, how many answer one prompt, and what it counts as; called from
            a thread of its own.
    """

    def __init__(
        self,
        catalog: Catalog,
        cache: HostCache,
        encoder: Encoder,
        hand_over: Callable[[str, list[Sequence], int, Part], None],
    ) -> None:
        self._base = catalog.base
        self._splits = catalog.splits
        self._cache = cache
        self._encoder = encoder
        self._hand_over = hand_over
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=give_way)
        self._lock = threading.Lock()
        self._preparing = 0

    def begin(self, request_id: str, work: Work, part: Part) -> None:
        """Run a request once more, if its split says so and there is room; returns at once."""
        shadow = self._splits.shadow_of(part)
        if shadow is None:
            return
        with self._lock:
            room = self._preparing < MOST_PREPARING
            self._preparing += room
        if room:
            self._pool.submit(self._prepare, f"{PREFIX}{request_id}", work, shadow)
        else:
            self._splits.comparison.drop(shadow)

    def _prepare(self, request_id: str, work: Work, part: Part) -> None:
        try:
            sequences = self._sequences(request_id, work, part)
            self._hand_over(request_id, sequences, work.n if isinstance(work, Generate) else 1, part)
        except Exception as error:
            self._splits.comparison.refused(part, error)
            logger.info("a shadow of %s failed: %s", part.split.shown, error)
        finally:
            with self._lock:
                self._preparing -= 1

    def _sequences(self, request_id: str, work: Work, part: Part) -> list[Sequence]:
        version = self._splits.version(part.split.name, part.digest)
        check_task(work, version, self._base)
        part.labels = labels_of(version.manifest, work)
        sequences = self._encoder.sequences(request_id, _unseen(work), version, self._cache.get(version))
        for sequence in sequences:
            sequence.scope, sequence.share = f"{sequence.scope}#shadow", sequence.share * SHARE
        return sequences


def _unseen(work: Work) -> Work:
    """A request without what is only for its reader."""
    return replace(work, sampling=replace(work.sampling, logprobs=None)) if isinstance(work, Generate) else work
