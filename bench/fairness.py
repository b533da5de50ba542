"""What a tenant notices of another that sends 100 times its share, and what taking turns costs.

    python -m bench.fairness --json fairness.json
    python -m bench.fairness --rounds 1 --window 4

One engine, called directly. A polite tenant asks for three quarters of its half of the capacity; the other sends its
own half, or 100 times as much, longer prompts and answers under more adapters than there are slots. Then both flood.
Each is measured under fair scheduling and, in turns with it, under first come first served, which is the same engine
told that both are one tenant. At most --backlog sequences of a tenant are in flight; a server refuses what is beyond.
Progress goes to stderr, the table to stdout.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.document import Document, short
from bench.machine import cores, describe_machine
from bench.measuring import percentile

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from service.engine.engine import Engine

WAYS: Mapping[str, str] = {"fair": "fair", "fcfs": "first come, first served"}
POLITE_LOAD = 0.75
"""What the polite tenant asks for, of its own share."""
LOADS: Mapping[str, Mapping[str, float]] = {
    "share": {"polite": POLITE_LOAD, "other": 1.0},
    "flood": {"polite": POLITE_LOAD, "other": 100.0},
    "both flood": {"polite": 100.0, "other": 100.0},
}
"""How often its share each tenant sends."""
RATIOS: Mapping[str, str] = {
    "p95_flood_vs_share_fair": "polite tenant's p95 time to the first token: other floods ÷ sends its share; fair",
    "p95_flood_vs_share_fcfs": "the same, first come first served (at least: who never got a token counts as waiting)",
    "tokens_fair_vs_fcfs": "both flood with requests of the same lengths, tokens/s: fair ÷ first come first served",
}
RANK, SETTLE = 16, 0.2
"""Rank of the adapters; the part of a window whose requests are not timed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a tenant's requests are like: lengths uniform in these ranges, adapters chosen uniformly."""

    prompt: tuple[int, int]
    answer: tuple[int, int]
    adapters: int

    @property
    def service(self) -> float:
        """Service of a request in the mean, as the scheduler counts it."""
        return sum(self.prompt) / 2 + sum(self.answer)


POLITE = Kind((16, 112), (16, 64), 1)
OTHER = Kind((16, 240), (32, 224), 32)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: whose, and when it comes, in seconds from the beginning of the window."""

    at: float
    tenant: str
    prompt: int
    answer: int
    adapter: int


@dataclass(slots=True)
class Window:
    """What happened in one window after it had settled; seconds from a polite request's arrival to its first token."""

    seconds: float = 0.0
    generated: int = 0
    prompts: int = 0
    steps: int = 0
    polite_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """The other tenant's, between two tokens of an answer."""
    unanswered: int = 0
    refused: int = 0
    preemptions: int = 0


def arrivals(tenant: str, kind: Kind, rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Poisson arrivals of a tenant, so many a second."""
    random_ = random.Random(f"{tenant} {seed}")
    at = random_.expovariate(rate)
    while at < seconds:
        adapter = random_.randrange(kind.adapters)
        yield Arrival(at, tenant, random_.randint(*kind.prompt), random_.randint(*kind.answer), adapter)
        at += random_.expovariate(rate)


class TwoTenants:
    """One engine, and two tenants that want it.

    Args:
        engine: The engine; nothing is in it between windows.
        adapters: Of each tenant, in memory already.
        backlog: Sequences that a tenant may have in flight.
    """

    def __init__(self, engine: "Engine", adapters: Mapping[str, Sequence["Adapter"]], backlog: int) -> None:
        self._engine = engine
        self._adapters = adapters
        self._backlog = backlog
        self._vocabulary = engine.base.model.config.vocab_size
        self._random = random.Random(0)
        self._made = 0

    def window(self, coming: Sequence[Arrival], seconds: float, *, fair: bool) -> Window:
        """Serve arrivals for so long; what is unfinished then is dropped."""
        from service.engine.events import FailedEvent, FinishedEvent, TokenEvent

        found, settle = Window(), SETTLE * seconds
        waiting: dict[str, float] = {}
        in_flight: dict[str, set[str]] = {name: set() for name in self._adapters}
        whose: dict[str, str] = {}
        said: defaultdict[str, list[float]] = defaultdict(list)
        prompts = preemptions = at = 0
        settled_at = 0.0
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < seconds:
            while at < len(coming) and coming[at].at <= now:
                row = coming[at]
                at += 1
                if len(in_flight[row.tenant]) >= self._backlog:
                    found.refused += 1
                    continue
                name = self._submit(row, fair=fair)
                whose[name] = row.tenant
                in_flight[row.tenant].add(name)
                if row.tenant == "polite" and row.at >= settle:
                    waiting[name] = row.at
            if not self._engine.has_work():
                time.sleep(0.0005)
                continue
            events = self._engine.step()
            done = time.perf_counter() - start
            counts = now >= settle
            if counts and not settled_at:
                settled_at, prompts = now, self._engine._stats.prompt_tokens
                preemptions = self._engine._scheduler.preemptions
            for event in events:
                assert not isinstance(event, FailedEvent), event
                if isinstance(event, TokenEvent):
                    found.generated += counts * len(event.token_ids)
                    if event.request_id in waiting:
                        found.polite_s.append(done - waiting.pop(event.request_id))
                    said[event.request_id].append(done)
                elif isinstance(event, FinishedEvent):
                    in_flight[whose[event.request_id]].discard(event.request_id)
            found.steps += counts
        found.seconds = time.perf_counter() - start - settled_at
        found.prompts = self._engine._stats.prompt_tokens - prompts
        found.preemptions = self._engine._scheduler.preemptions - preemptions
        found.gaps_s = [
            after - before
            for name, times in said.items()
            if whose[name] == "other"
            for before, after in pairwise(times)
            if before >= settle
        ]
        found.unanswered = len(waiting)
        found.polite_s += [seconds - arrived for arrived in waiting.values()]  # so long at least
        for names in in_flight.values():
            for name in names:
                self._engine.abort(name)
        assert not self._engine.has_work()
        return found

    def _submit(self, row: Arrival, *, fair: bool) -> str:
        from service.engine.sampling import SamplingParams
        from service.engine.sequence import Sequence as EngineSequence

        self._made += 1
        ids = self._random.choices(range(2, self._vocabulary), k=row.prompt)
        self._engine.submit(
            EngineSequence(
                str(self._made),
                ids,
                adapter=self._adapters[row.tenant][row.adapter],
                sampling=SamplingParams(max_tokens=row.answer, temperature=0.0, ignore_eos=True),
                scope=row.tenant if fair else "",
            )
        )
        return str(self._made)


def measure(two: TwoTenants, document: Document, *, rounds: int, window: float) -> None:
    """Take turns between ways and loads, and write down what came of it."""
    capacity = _capacity(two, window / 2)
    rates = {"polite": POLITE_LOAD * capacity / 2 / POLITE.service, "other": capacity / 2 / OTHER.service}
    say(f"capacity: {capacity:,.0f} tokens of service a second; shares: {rates} requests a second")
    found: dict[tuple[str, str], list[Window]] = {(way, load): [] for way in WAYS for load in LOADS}
    for number in range(rounds):
        for load in LOADS:
            coming = _coming(load, rates, window, number)
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                taken = two.window(coming, window, fair=way == "fair")
                found[way, load].append(taken)
                say(
                    f"round {number + 1} of {rounds}: {load}, {way}: p95 {_ms(_first_token([taken], 0.95))} ms of "
                    f"{len(taken.polite_s)}, {_tokens(taken):,.0f} tokens/s, {taken.preemptions} preempted"
                )
    _conclude(document, found, capacity, rates)


def _coming(load: str, rates: Mapping[str, float], seconds: float, seed: int) -> list[Arrival]:
    """The requests of a window. Where both flood, their lengths are alike, so that both ways do the same work."""
    kinds = {"polite": POLITE if load != "both flood" else replace(OTHER, adapters=POLITE.adapters), "other": OTHER}
    rows = [arrivals(name, kinds[name], LOADS[load][name] * rates[name], seconds, seed) for name in kinds]
    return sorted(chain(*rows), key=lambda row: row.at)


def _capacity(two: TwoTenants, seconds: float) -> float:
    """Service a second with both tenants saturating the engine, first come first served; the first run warms up."""
    taken = Window()
    for length in (seconds / 2, seconds):
        taken = two.window(
            _coming("flood", {"polite": 100 / length, "other": 10 / length}, length, -1), length, fair=False
        )
    return (taken.prompts + 2 * taken.generated) / taken.seconds


def _tokens(taken: Window) -> float:
    """Tokens a second, of prompts and answers."""
    return (taken.prompts + taken.generated) / taken.seconds


def _first_token(windows: Sequence[Window], part: float) -> float | None:
    """The median over windows of a percentile, in seconds; None if the polite tenant asked for nothing in any."""
    return _middle([taken.polite_s for taken in windows], part)


def _middle(samples: Sequence[Sequence[float]], part: float) -> float | None:
    """The median of a percentile of each sample; None if all are empty."""
    found = [percentile(sample, part) for sample in samples if sample]
    return statistics.median(found) if found else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else short(seconds * 1e3)


def _conclude(
    document: Document, found: Mapping[tuple[str, str], list[Window]], capacity: float, rates: Mapping[str, float]
) -> None:
    by_round: dict[str, list[float]] = {}
    for way in WAYS:
        share, flood = (_first_token(found[way, load], 0.95) for load in ("share", "flood"))
        rounds = zip(found[way, "flood"], found[way, "share"], strict=True)
        by_round[f"p95_flood_vs_share_{way}"] = [
            short(percentile(one.polite_s, 0.95) / percentile(other.polite_s, 0.95))
            for one, other in rounds
            if one.polite_s and other.polite_s
        ]
        if share is None or flood is None:
            document.reason(f"p95_flood_vs_share_{way}", "no request of the polite tenant came: longer windows, please")
        else:
            document.ratio(f"p95_flood_vs_share_{way}", flood / share)
    pairs = zip(found["fair", "both flood"], found["fcfs", "both flood"], strict=True)
    by_round["tokens_fair_vs_fcfs"] = [short(_tokens(one) / _tokens(other)) for one, other in pairs]
    document.ratio("tokens_fair_vs_fcfs", statistics.median(by_round["tokens_fair_vs_fcfs"]))
    figures = document.document["figures"]
    figures["by round"] = by_round
    figures["capacity, service a second"] = short(capacity)
    figures["requests a second at the share"] = {
        "polite": short(rates["polite"]),
        "other": short(rates["other"]),
    }
    for (way, load), windows in found.items():
        figures[f"{load}, {way}"] = {
            "polite_first_token_ms": {
                name: _ms(_first_token(windows, part)) for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            },
            "others_between_tokens_ms": {
                name: _ms(_middle([taken.gaps_s for taken in windows], part))
                for name, part in (("p50", 0.5), ("p99", 0.99))
            },
            "p95_by_round_ms": [_ms(_first_token([taken], 0.95)) for taken in windows],
            "polite_requests": sum(len(taken.polite_s) for taken in windows),
            "never_answered": sum(taken.unanswered for taken in windows),
            "tokens_per_s": short(statistics.median(_tokens(taken) for taken in windows)),
            "tokens_per_s_by_round": [short(_tokens(taken)) for taken in windows],
            "steps_per_s": short(statistics.median(taken.steps / taken.seconds for taken in windows)),
            "preempted_per_s": short(statistics.median(taken.preemptions / taken.seconds for taken in windows)),
            "refused": sum(taken.refused for taken in windows),
        }


def build(args: argparse.Namespace) -> TwoTenants:
    """The engine with both tenants' adapters, which are made and read as any others."""
    from adapters.adapter import load_adapter
    from adapters.base import resolve_base
    from bench.random_adapters import peft_template, write_missing
    from service.engine.config import EngineConfig
    from service.engine.engine import Engine

    source = resolve_base(args.base)
    config = EngineConfig(max_running=args.rows, threads=args.threads, dtype=args.dtype, prefix_reuse=False)
    engine = Engine(source, config)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(POLITE.adapters + OTHER.adapters)]
        write_missing(source, peft_template(source, rank=RANK), folders)
        made = [engine.pack(load_adapter(folder, source, ref=f"bench/{folder.name}")) for folder in folders]
    adapters = {"polite": made[: POLITE.adapters], "other": made[POLITE.adapters :]}
    return TwoTenants(engine, adapters, args.backlog)


def render(document: Mapping[str, Any]) -> str:
    """The document as tables in Markdown."""
    from bench.markdown import table

    machine, figures = document["machine"], document["figures"]
    workload = ", ".join(f"{key} {value}" for key, value in document["workload"].items())
    ratios = [
        (f"`{key}`", text, str(document["ratios"][key]), _range(figures["by round"][key]))
        for key, text in RATIOS.items()
    ]
    rows = []
    for load in LOADS:
        for way, name in WAYS.items():
            one = figures[f"{load}, {way}"]
            times, gaps = one["polite_first_token_ms"], one["others_between_tokens_ms"]
            cells = (*times.values(), *gaps.values(), one["tokens_per_s"], one["preempted_per_s"])
            rows.append((load, name, *("–" if cell is None else f"{cell:,.4g}" for cell in cells)))
    head = (
        "other sends", "scheduling", "p50 ms", "p95 ms", "p99 ms", "other's tokens apart, p50 ms", "p99 ms", "tokens/s",
        "preempted/s",
    )  # fmt: skip
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['system']}; torch "
        f"{machine['torch']}. Load before the run: {machine['load_before']}. {workload}.\n\n"
        f"{table(('ratio', 'what', 'value', 'of single rounds'), ratios)}\n\n{table(head, rows)}"
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values)}–{max(values)}" if values else "–"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fairness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded", help="the base [%(default)s]")
    parser.add_argument("--rows", type=int, default=32, help="sequences that run at once [%(default)s]")
    parser.add_argument("--backlog", type=int, default=512, help="of a tenant in flight, at most [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="windows of each kind [%(default)s]")
    parser.add_argument("--window", type=float, default=5.0, help="seconds of each [%(default)s]")
    parser.add_argument("--threads", type=int, default=min(2, cores()), help="[%(default)s]")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="[%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.window <= 0:
        parser.error("--rounds must be at least 1 and --window more than 0")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's affair, not the reader's
    workload = {name: getattr(args, name) for name in ("base", "rows", "backlog", "rounds", "window", "dtype")}
    document = Document(args.json, describe_machine(args.threads, None), workload, RATIOS)
    measure(build(args), document, rounds=args.rounds, window=args.window)
    document.save()
    with suppress(BrokenPipeError):
        print(render(document.document))


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
