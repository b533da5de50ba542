"""Rows of a paged cache."""

from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.kv_cache import Content


def take(cache: PagedKVCache, tokens: int) -> int:
    """A row for a sequence of so many tokens that resembles no other."""
    allocation = cache.allocate(Content("", ()), 0, tokens=tokens)
    assert allocation is not None
    return allocation.row
