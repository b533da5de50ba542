"""Which versions of a split did so badly that they get no more requests."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from adapters.splits import BackOut, Split
from service.figures import Row, Sample


def breaches(split: Split, rows: Mapping[tuple[str, bool], Row], now: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """(digest, figures) of the versions that are to be taken out; the alias's own never is.

    Args:
        split: The rules.
        rows: What its versions did.
        now: On the clock of ``time.monotonic``.
    """
    rules = split.rules.back_out
    if rules is None:
        return
    own = _recent(rows, split.own, now - rules.window_s)
    for digest, weight in split.rules.weights.items():
        if digest != split.own and weight > 0:
            found = _recent(rows, digest, now - rules.window_s)
            figures = _by_errors(rules, found) or _by_latency(rules, found, own)
            if figures is not None:
                yield digest, figures


def percentile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that so large a part of them does not exceed; None of none."""
    return sorted(values)[max(0, ceil(part * len(values)) - 1)] if values else None


def _by_errors(rules: BackOut, found: Sequence[Sample]) -> dict[str, Any] | None:
    if rules.error_rate is None or len(found) < rules.min_requests:
        return None
    rate = sum(sample.failed for sample in found) / len(found)
    if rate <= rules.error_rate:
        return None
    return {"reason": "error_rate", "error_rate": round(rate, 4), "limit": rules.error_rate, "requests": len(found)}


def _by_latency(rules: BackOut, found: Sequence[Sample], own: Sequence[Sample]) -> dict[str, Any] | None:
    times, others = _times(found), _times(own)
    if rules.p95_ratio is None or min(len(times), len(others)) < rules.min_requests:
        return None
    p95, p95_own = percentile(times, 0.95), percentile(others, 0.95)
    assert p95 is not None and p95_own is not None, "there are some"
    if p95 <= rules.p95_ratio * p95_own:
        return None
    return {
        "reason": "p95_ratio",
        "ttft_p95_ms": round(p95 * 1e3, 3),
        "own_ttft_p95_ms": round(p95_own * 1e3, 3),
        "limit": rules.p95_ratio,
        "requests": len(times),
    }


def _recent(rows: Mapping[tuple[str, bool], Row], digest: str, since: float) -> list[Sample]:
    row = rows.get((digest, False))
    return [] if row is None else [sample for sample in row.samples if sample.at >= since]


def _times(samples: Sequence[Sample]) -> list[float]:
    """Times to the first token of those that did not have to wait for their adapter to be read."""
    return [sample.ttft for sample in samples if sample.ttft is not None and not sample.cold]
