"""Counts of what an engine has done and holds."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class EngineStats:
    """A snapshot; counters only grow, gauges are as of now."""

    steps: int = 0
    prompt_tokens: int = 0
    """Computed; those that were in the KV cache already are not among them."""
    cached_tokens: int = 0
    """Of prompts, found in the KV cache."""
    generated_tokens: int = 0
    classified_texts: int = 0
    adapter_loads: int = 0
    """Adapters copied into a slot (swaps)."""
    adapter_evictions: int = 0
    max_adapters_in_step: int = 0
    """The most distinct adapters, the bare base not counted, that shared one step."""
    max_kinds_in_step: int = 0
    """The most kinds of work (generation, classification) that shared one step."""
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """Steps by the number of sequences in them."""
    adapters_per_step: Counter[int] = field(default_factory=Counter)
    """Steps by the number of distinct adapters in them."""
    tiers: Counter[str] = field(default_factory=Counter)
    """Sequences by where their adapter was when they were admitted."""
    preemptions: int = 0
    """Answers that gave up their row to another tenant and were taken up again later."""
    running: int = 0
    waiting: int = 0
    waiting_by_tenant: dict[str, int] = field(default_factory=dict)
    """Of those that wait; tenants without any are left out."""
    adapters_resident: int = 0
    pins: int = 0
    kv_rows_total: int = 0
    kv_rows_free: int = 0
    random_streams: int = 0
