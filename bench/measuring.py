"""Takes turns between systems, and says how far the values of one lie apart."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of several rounds."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Median and extremes, rounded to what was measured."""
        low, high = min(self.values), max(self.values)
        return {
            "median": _round(self.median),
            "low": _round(low),
            "high": _round(high),
            "rounds": len(self.values),
            "unit": self.unit,
        }


@dataclass(frozen=True, slots=True)
class System:
    """Something that can be asked to do a round of the work.

    ``run`` takes the number of the round, so that each has fresh prompts, and returns how many units it did (tokens,
    texts). ``warm`` is a short piece of the same work, and is not counted; None where another system has warmed the
    same thing already. ``most`` bounds the rounds.
    """

    key: str
    name: str
    run: Callable[[int], int]
    warm: Callable[[], object] | None
    most: int | None = None


def take_turns(
    systems: Sequence[System],
    rounds: int,
    say: Say,
    *,
    unit: str = "tok/s",
    patience: float = float("inf"),
    failed: Callable[[System, Exception], None] | None = None,
) -> dict[str, Spread]:
    """Measure A B C A B C …; returns each system's rates by its key.

    Args:
        systems: In the order of their turns.
        rounds: Rounds of each, after one short warm-up.
        say: Told what is going on.
        unit: Of the rates.
        patience: Seconds after which a system gets no further round.
        failed: Told of a system that raised, which is left out from then on; without it the error is raised.
    """
    rates: dict[str, list[float]] = {system.key: [] for system in systems}
    spent = dict.fromkeys(rates, 0.0)
    alive = list(systems)
    for number in range(-1, rounds):
        for system in list(alive):
            if spent[system.key] > patience or number >= (system.most or rounds):
                continue
            work = system.warm if number < 0 else functools.partial(system.run, number)
            if work is None:
                continue
            start = time.perf_counter()
            try:
                units = work()
            except Exception as error:
                if failed is None:
                    raise
                failed(system, error)
                alive.remove(system)
                continue
            if number < 0:
                continue
            seconds = time.perf_counter() - start
            spent[system.key] += seconds
            assert isinstance(units, int)
            rates[system.key].append(units / seconds)
            say(f"round {number + 1} of {rounds}: {system.name}: {units / seconds:,.1f} {unit}")
    lost = {system.key for system in systems} - {system.key for system in alive}
    return {key: Spread(tuple(values), unit) for key, values in rates.items() if values and key not in lost}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of the others lies at or below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _round(value: float) -> float:
    return float(f"{value:.4g}")
