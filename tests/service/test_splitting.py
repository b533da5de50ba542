"""Rules for a split: which are refused, and who gets which version by them."""

import random
from collections import Counter
from datetime import UTC, datetime
from math import sqrt
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.errors import AdapterNameError, AdapterNotFoundError
from adapters.names import LATEST, AdapterName
from adapters.pointers import Pointers
from adapters.splits import BackOut, Rules, Split
from service.errors import InvalidRequestError, describe_validation
from service.splitting import SplitRules, choose, resolved

NAME = AdapterName("acme", "support")
A, B, C = ("a" * 64, "b" * 64, "bbbbbbbc" + "c" * 56)
POINTERS = Pointers((A, B, C), {LATEST: A})
USERS = [f"user-{number}" for number in range(4000)]


def split(weights: dict[str, float], sticky: str | None = "user", alias: str = LATEST) -> Split:
    return Split(NAME, alias, A, Rules(weights, sticky), datetime.now(UTC))


def chosen(weights: dict[str, float], alias: str = LATEST) -> dict[str, str]:
    rules = split(weights, alias=alias)
    return {user: choose(rules, user, lambda: 1 / 0) for user in USERS}


def check_share(count: int, total: int, part: float) -> None:
    """Within five standard deviations of the binomial distribution."""
    assert abs(count - part * total) <= 5 * sqrt(total * part * (1 - part)), (count, total, part)


def test_without_a_value_each_request_is_drawn() -> None:
    generator = random.Random(7)
    rules = split({A: 60, B: 30, C: 10})
    for value in (None, "same"):
        drawn = Counter(
            choose(rules if value is None else split(dict(rules.rules.weights), None), value, generator.random)
            for _ in range(10_000)
        )
        for digest, part in ((A, 0.6), (B, 0.3), (C, 0.1)):
            check_share(drawn[digest], 10_000, part)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_a_version_without_weight_gets_nothing(number: float) -> None:
    assert choose(split({A: 0, B: 0.1, C: 0}), None, lambda: number) == B
    assert choose(split({A: 0, B: 0.1, C: 0}), "user", lambda: number) == B


def test_all_taken_out_leaves_the_aliases_own() -> None:
    assert choose(split({B: 0, C: 0}), "user", lambda: 0.5) == A


def test_a_user_stays_and_users_are_many() -> None:
    first = chosen({A: 90, B: 10})
    assert first == chosen({B: 10, A: 90})
    check_share(Counter(first.values())[B], len(USERS), 0.1)
    other = chosen({A: 90, B: 10}, "stable")
    moved = sum(first[user] != other[user] for user in USERS)
    check_share(moved, len(USERS), 2 * 0.9 * 0.1)  # another alias draws its own lots


def test_a_weight_that_grows_moves_nobody_away() -> None:
    before, after = chosen({A: 90, B: 10}), chosen({A: 90, B: 20})
    assert all(after[user] == B for user in USERS if before[user] == B)
    check_share(Counter(after.values())[B], len(USERS), 20 / 110)
    third = chosen({A: 90, B: 10, C: 100})
    assert all(third[user] in (before[user], C) for user in USERS)
    gone = chosen({A: 90, B: 0, C: 100})
    assert all(gone[user] == third[user] for user in USERS if third[user] != B)


def test_digests_are_completed() -> None:
    body = SplitRules.model_validate(
        {"versions": {A[:8]: 9, "bbbbbbbb": 1}, "shadow": C[:9], "back_out": {"error_rate": 0.1, "p95_ratio": 2}}
    )
    assert resolved(body.rules, NAME, LATEST, POINTERS) == Rules({A: 9, B: 1}, None, C, BackOut(0.1, 2.0, 30, 300.0))


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "versions", "required"),
        ({"versions": {}}, "versions", "at least 1"),
        ({"versions": {A: -1}}, None, "the weight of 'aaaa"),
        ({"versions": {A: 1e9}}, None, "0 to 1000000"),
        ({"versions": {A: 0}}, None, "above 0"),
        ({"versions": {A: "1"}}, "versions", "number"),
        ({"versions": {A: 1}, "sticky": "ip"}, "sticky", "'user'"),
        ({"versions": {A: 1}, "colour": 1}, "colour", "not a field"),
        ({"versions": {A: 1}, "back_out": {}}, "back_out", "error_rate"),
        ({"versions": {A: 1}, "back_out": {"error_rate": 1}}, "back_out.error_rate", "less than 1"),
        ({"versions": {A: 1}, "back_out": {"p95_ratio": 1}}, "back_out.p95_ratio", "greater than 1"),
        ({"versions": {A: 1}, "back_out": {"error_rate": 0.1, "min_requests": 5000}}, "back_out.min_requests", "1000"),
        ({"versions": {A: 1}, "back_out": {"error_rate": 0.1, "window_s": 0}}, "back_out.window_s", "1"),
    ],
)
def test_bad_rules_are_refused_by_name(body: dict[str, Any], field: str | None, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SplitRules.model_validate(body)
    detail = describe_validation(refused.value.errors())
    assert says in detail.message
    assert (detail.param or "").startswith(field or "")


@pytest.mark.parametrize(
    ("rules", "alias", "kind", "key"),
    [
        (Rules({"dddddddd": 1}), LATEST, AdapterNotFoundError, "version"),
        (Rules({"bbbbbbb": 1}), LATEST, AdapterNameError, "version"),
        (Rules({A: 1}, shadow="dddddddd"), LATEST, AdapterNotFoundError, "version"),
        (Rules({A: 1}), "stable", AdapterNotFoundError, "alias"),
        (Rules({A: 1, A[:8]: 1}), LATEST, InvalidRequestError, "versions"),
        (Rules({B: 1}, back_out=BackOut(p95_ratio=2)), LATEST, InvalidRequestError, "back_out.p95_ratio"),
        (Rules({A: 0, B: 1}, back_out=BackOut(p95_ratio=2)), LATEST, InvalidRequestError, "back_out.p95_ratio"),
    ],
)
def test_rules_have_to_fit_the_versions(rules: Rules, alias: str, kind: type[Exception], key: str) -> None:
    with pytest.raises(kind) as refused:
        resolved(rules, NAME, alias, POINTERS)
    error = refused.value
    assert (error.param if isinstance(error, InvalidRequestError) else error.key) == key  # type: ignore[attr-defined]
