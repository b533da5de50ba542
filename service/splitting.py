"""Rules for splitting an alias's requests between versions: as they are sent, checked, and applied."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.names import AdapterName, AdapterRef
from adapters.pointers import Pointers, find_version
from adapters.splits import BackOut, Rules, Split
from service.errors import InvalidRequestError
from service.figures import KEPT
from service.schemas import Name, WireModel

MAX_VERSIONS = 16
_BITS = 52
"""So many bits and a half fit a float exactly."""
MAX_WEIGHT = 1e6


class BackOutRequest(WireModel):
    """When a version that is not the alias's own gets no more requests."""

    error_rate: float | None = Field(None, ge=0, lt=1, description="Above this part of its requests has failed.")
    p95_ratio: float | None = Field(
        None, gt=1, le=1000, description="Its 95th percentile of the time to the first token is above so many times "
        "that of the alias's own version.",
    )  # fmt: skip
    min_requests: int = Field(30, ge=1, le=KEPT, description="Nothing is judged by fewer requests of a version.")
    window_s: float = Field(300.0, ge=1, le=86400, description="Seconds that are looked back.")

    @model_validator(mode="after")
    def _check_measure(self) -> Self:
        if self.error_rate is None and self.p95_ratio is None:
            raise ValueError("name error_rate, p95_ratio or both")
        return self


class SplitRules(WireModel):
    """PUT /v1/adapters/{tenant}/{name}/splits/{alias}."""

    versions: dict[str, float] = Field(
        min_length=1,
        max_length=MAX_VERSIONS,
        description="Weights by version (its digest, or a beginning of at least 8 digits); 0 sends it nothing.",
    )
    sticky: Literal["user"] | None = Field(
        None, description="The request's field whose value decides; null draws anew for every request."
    )
    shadow: Name | None = Field(
        None, description="A version that runs every request once more; nobody sees its answers."
    )
    back_out: BackOutRequest | None = Field(None, description="When a version gets no more requests.")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        for version, weight in self.versions.items():
            if not 0 <= weight <= MAX_WEIGHT:
                raise ValueError(
                    f"the weight of {version[:64]!a} is {weight}: write a number from 0 to {MAX_WEIGHT:.0f}"
                )
        if not any(self.versions.values()):
            raise ValueError("a version needs a weight above 0; to send all to the alias's own, delete the split")
        return self

    @property
    def rules(self) -> Rules:
        """The rules, versions named as they were sent."""
        back_out = None if self.back_out is None else BackOut(**self.back_out.model_dump())
        return Rules(dict(self.versions), self.sticky, self.shadow, back_out)


def resolved(rules: Rules, name: AdapterName, alias: str, pointers: Pointers) -> Rules:
    """The rules with whole digests.

    Raises:
        AdapterNotFoundError: There is no such alias, or no such version.
        InvalidRequestError: A version is named twice, or there is nothing to compare a version's latency with.
    """
    own = find_version(AdapterRef(name, alias=alias), pointers)
    weights: dict[str, float] = {}
    for version, weight in rules.weights.items():
        digest = find_version(AdapterRef(name, version=version), pointers)
        if digest in weights:
            raise InvalidRequestError(f"versions names {digest[:12]} twice.", param="versions")
        weights[digest] = weight
    shadow = None if rules.shadow is None else find_version(AdapterRef(name, version=rules.shadow), pointers)
    if rules.back_out is not None and rules.back_out.p95_ratio is not None and not weights.get(own):
        raise InvalidRequestError(
            f"p95_ratio compares with the alias's own version, {own[:12]}, which gets no requests: give it a weight.",
            param="back_out.p95_ratio",
        )
    return Rules(weights, rules.sticky, shadow, rules.back_out)


def choose(split: Split, value: str | None, draw: Callable[[], float]) -> str:
    """The digest that a request gets.

    Args:
        split: The rules.
        value: What the request holds in the field that the rules name; None draws.
        draw: A number in [0, 1).
    """
    weights = {digest: weight for digest, weight in split.rules.weights.items() if weight > 0}
    if not weights:  # all were taken out
        return split.own
    if value is None or split.rules.sticky is None:
        return _drawn(weights, draw())
    return max(weights, key=lambda digest: _score(f"{split.shown}\0{digest}\0{value}", weights[digest]))


def _drawn(weights: Mapping[str, float], number: float) -> str:
    left = number * sum(weights.values())
    for digest, weight in weights.items():
        left -= weight
        if left < 0:
            return digest
    return digest  # rounding


def _score(text: str, weight: float) -> float:
    """Weighted rendezvous hashing: each version bids, and who raises its weight raises its own bids alone.

    The largest bid wins with the probability of its weight among all. Nobody is moved but to a version whose weight
    grew, or away from one whose weight fell.
    """
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - _BITS)
    return -weight / math.log((number + 0.5) / (1 << _BITS))
