"""Which adapter sits in which slot of device memory: LRU with pins.

Slot 0 is "no adapter" and never assigned. A slot is pinned while a running sequence uses it, so the batch in
flight can never lose an adapter. Copying weights into a slot is the runner's work; this table only decides.
"""

from collections import Counter, OrderedDict


class SlotTable:
    """Assigns ``slots`` adapter slots, numbered from 1, to adapter digests."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(1, slots + 1))
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pins: Counter[str] = Counter()
        self.evictions = 0

    def resident(self, digest: str) -> bool:
        """Whether the adapter is in a slot now."""
        return digest in self._slot_of

    def acquire(self, digest: str) -> int | None:
        """Pin the adapter's slot, assigning one if needed; None while every slot is pinned by others."""
        slot = self._slot_of.get(digest)
        if slot is None:
            slot = self._take()
            if slot is None:
                return None
            self._slot_of[digest] = slot
        self._slot_of.move_to_end(digest)
        self._pins[digest] += 1
        return slot

    def release(self, digest: str) -> None:
        """Undo one :meth:`acquire`; the adapter stays resident until its slot is needed."""
        assert self._pins[digest] > 0, f"adapter {digest} was released more often than acquired"
        self._pins[digest] -= 1
        if not self._pins[digest]:
            del self._pins[digest]

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop(0)
        for digest, slot in self._slot_of.items():
            if digest not in self._pins:
                del self._slot_of[digest]
                self.evictions += 1
                return slot
        return None

    @property
    def pins(self) -> int:
        """Acquisitions not yet released."""
        return self._pins.total()

    @property
    def occupied(self) -> int:
        """Slots that hold an adapter."""
        return len(self._slot_of)

    def check_integrity(self) -> None:
        """Assert that every slot is free or assigned, once, and that only residents are pinned."""
        assert sorted([*self._free, *self._slot_of.values()]) == list(range(1, self.slots + 1)), "slots lost or doubled"
        assert set(self._pins) <= set(self._slot_of), "an adapter is pinned but not resident"
