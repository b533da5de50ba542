"""What is counted of the versions of a split, and which of them are taken out for it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from adapters.names import AdapterName
from adapters.splits import BackOut, Rules, Split
from service.back_out import breaches, percentile
from service.comparison import Comparison, Pair, Part
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.errors import InvalidRequestError
from service.figures import KEPT, Row, Sample

A, B = "a" * 64, "b" * 64
SPLIT = Split(AdapterName("acme", "support"), "latest", A, Rules({A: 9, B: 1}, shadow=B), datetime.now(UTC))


@pytest.fixture
def comparison() -> Comparison:
    made = Comparison()
    made.keep([SPLIT])
    return made


def token(request_id: str, index: int, *ids: int, at: float = 0.0) -> TokenEvent:
    return TokenEvent(request_id, index, "x", ids, at=at)


def finished(request_id: str, index: int, tokens: int = 1) -> FinishedEvent:
    return FinishedEvent(request_id, index, "stop", 5, 0, tokens, 0.0, "device")


def run(comparison: Comparison, part: Part, events: Sequence[Event], *, answers: int = 1) -> None:
    comparison.open(events[0].request_id, part, {event.index for event in events}, answers, cold=False)
    comparison.note(events)


def test_an_answer_counts_when_it_ends(comparison: Comparison) -> None:
    part = Part(SPLIT, B, began=10.0)
    comparison.open("r", part, range(2), 2, cold=True)
    comparison.note([token("r", 0, 7, at=10.5), token("other", 0, 7), token("r", 1, 7, 8, at=11.0), finished("r", 0)])
    assert comparison.rows(SPLIT) == {}
    comparison.note([finished("r", 1, 2)])
    row = comparison.rows(SPLIT)[B, False]
    assert (row.requests, row.finished, row.prompt_tokens, row.generated_tokens) == (1, {"stop": 2}, 5, 3)
    assert list(row.samples) == [Sample(11.0, 1.0, 0.5, cold=True)]
    comparison.close("r")
    assert comparison.rows(SPLIT)[B, False].aborted == 0


def test_failures_and_those_who_left(comparison: Comparison) -> None:
    for request_id in ("failed", "left"):
        comparison.open(request_id, Part(SPLIT, A), range(1), 1, cold=False)
    comparison.note([FailedEvent("failed", 0, "non_finite_logits", "NaN")])
    comparison.close("left")
    comparison.refused(Part(SPLIT, A), InvalidRequestError("no"))
    comparison.failed(Part(SPLIT, A), "adapter_invalid", 422)
    row = comparison.rows(SPLIT)[A, False]
    assert (row.requests, row.aborted) == (4, 1)
    assert row.errors == {"non_finite_logits": 1, "invalid_value": 1, "adapter_invalid": 1}
    assert [sample.failed for sample in row.samples] == [True, True]  # a client's own mistake says nothing


def test_shadows_are_compared_with_what_was_answered(comparison: Comparison) -> None:
    for number, (said, shadow_said) in enumerate([((7, 8), (7, 8)), ((7, 8), (7, 9)), ((7,), (7, 8))]):
        pair = Pair()
        parts = [Part(SPLIT, A, pair=pair), Part(SPLIT, B, shadow=True, pair=pair)]
        for place in (0, 1) if number else (1, 0):  # whichever ends last
            request_id, ids = f"{place}-{number}", (said, shadow_said)[place]
            run(comparison, parts[place], [token(request_id, 0, *ids), finished(request_id, 0)])
    rows = comparison.rows(SPLIT)
    assert (rows[B, True].compared, rows[B, True].equal) == (3, 1)
    assert rows[A, False].compared == 0
    assert (B, False) not in rows


def test_labels_are_compared_by_name(comparison: Comparison) -> None:
    pair = Pair()
    first = Part(SPLIT, A, pair=pair, labels=lambda values: ("no", "yes")[values.index(max(values))])
    second = Part(SPLIT, B, shadow=True, pair=pair, labels=lambda values: ("yes", "no")[values.index(max(values))])
    run(comparison, first, [ClassifiedEvent("r", 0, (0.1, 0.9), 4, 0.0, "host")])
    run(comparison, second, [ClassifiedEvent("s", 0, (0.8, 0.2), 4, 0.0, "host")])
    row = comparison.rows(SPLIT)[B, True]
    assert (row.compared, row.equal, row.finished) == (1, 1, {"classified": 1})


def test_a_shadow_that_had_no_time_left_was_dropped(comparison: Comparison) -> None:
    comparison.open("shadow-r", Part(SPLIT, B, shadow=True), range(1), 1, cold=False)
    comparison.take(FailedEvent("shadow-r", 0, "deadline_exceeded", "late"))
    row = comparison.rows(SPLIT)[B, True]
    assert (row.dropped, row.errors, comparison.dropped) == (1, {}, 1)


def test_other_rules_begin_with_nothing(comparison: Comparison) -> None:
    comparison.failed(Part(SPLIT, A), "x", 500)
    comparison.keep([SPLIT])
    assert comparison.rows(SPLIT)[A, False].requests == 1
    anew = replace(SPLIT, set_at=datetime.now(UTC))
    comparison.keep([anew])
    comparison.failed(Part(SPLIT, A), "x", 500)  # one that began under the old rules
    assert comparison.rows(SPLIT) == comparison.rows(anew) == {}
    comparison.failed(Part(anew, A), "x", 500)
    assert comparison.rows(anew)[A, False].requests == 1
    comparison.keep([])
    assert comparison.rows(anew) == {}


def test_only_the_newest_times_are_kept(comparison: Comparison) -> None:
    for number in range(KEPT + 5):
        comparison.failed(Part(SPLIT, A), f"code{number % 2}", 500)
    row = comparison.rows(SPLIT)[A, False]
    assert (row.requests, len(row.samples)) == (KEPT + 5, KEPT)


# Back-out


def row(failed: int, answered: int, ttft: float = 0.1, **more: Any) -> Row:
    made = Row()
    made.samples.extend(Sample(100.0, 1.0, failed=True) for _ in range(failed))
    made.samples.extend(Sample(100.0, 1.0, ttft, **more) for _ in range(answered))
    return made


def reasons(rules: BackOut, own: Row, other: Row, now: float = 110.0) -> list[str]:
    split = replace(SPLIT, rules=Rules({A: 9, B: 1}, back_out=rules))
    found = list(breaches(split, {(A, False): own, (B, False): other}, now))
    assert all(digest == B for digest, _ in found)
    return [figures["reason"] for _, figures in found]


def test_a_version_that_fails_too_often() -> None:
    rules = BackOut(error_rate=0.1, min_requests=20, window_s=60)
    assert reasons(rules, row(20, 0), row(3, 17)) == ["error_rate"]  # the alias's own never goes
    assert reasons(rules, row(0, 20), row(2, 18)) == []
    assert reasons(rules, row(0, 20), row(19, 0)) == []
    assert reasons(rules, row(0, 0), row(20, 0)) == ["error_rate"]
    assert reasons(rules, row(0, 20), row(3, 17), now=161.0) == []
    shadow = {(B, True): row(20, 0)}
    assert not list(breaches(replace(SPLIT, rules=Rules({A: 1, B: 1}, back_out=rules)), shadow, 110.0))


def test_a_version_without_weight_is_out_already() -> None:
    split = replace(SPLIT, rules=Rules({A: 9, B: 0}, back_out=BackOut(error_rate=0.1, min_requests=1)))
    assert not list(breaches(split, {(B, False): row(20, 0)}, 110.0))


def test_a_version_that_is_too_slow() -> None:
    rules = BackOut(p95_ratio=1.5, min_requests=20, window_s=60)
    assert reasons(rules, row(0, 20), row(0, 20, 0.151)) == ["p95_ratio"]
    assert reasons(rules, row(0, 20), row(0, 20, 0.15)) == []
    assert reasons(rules, row(0, 19), row(0, 20, 0.9)) == []
    assert reasons(rules, row(0, 20), row(0, 19, 0.9)) == []
    assert reasons(rules, row(0, 20), row(0, 40, 0.9, cold=True)) == []  # reading it is no fault of its own
    mostly = row(0, 19)
    mostly.samples.append(Sample(100.0, 1.0, 0.9))
    assert reasons(rules, row(0, 20), mostly) == []  # one of twenty is beyond the 95th percentile


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == percentile([1.0, 3.0, 2.0], 0.95) == 3.0
    assert percentile(list(range(100, 0, -1)), 0.95) == 95
    assert percentile([2.0, 1.0], 0.5) == 1.0
