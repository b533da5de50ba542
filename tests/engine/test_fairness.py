"""Tenants take turns: bounds on what one gets more than another, whatever either sends, and nothing is idle for it.

The scheduler is the real one; instead of a model the simulation only counts which tokens would have been computed.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fairness import LOADS, OTHER, POLITE, Arrival, arrivals
from bench.measuring import percentile
from service.engine.fairness import CREDIT, GENERATED_WEIGHT, IDLE_KEPT, PROMPT_WEIGHT, TokenCounter
from service.engine.kv_cache import KVCache
from service.engine.sampling import SamplingParams
from service.engine.scheduler import Plan, Scheduler
from service.engine.sequence import Sequence
from service.engine.slots import SlotTable
from tests.engine.conftest import Zoo
from tests.engine.driving import Outcome, assert_idle, drain, generation
from tests.engine.test_scheduler import Clock, NamedAdapter

ROWS, BUDGET, PROMPT, ANSWER = 4, 24, 20, 8


@dataclass
class Simulation:
    """A scheduler, and what it had computed so far."""

    rows: int = ROWS
    slots: int = 2
    budget: int = BUDGET
    shares: dict[str, float] = field(default_factory=dict)
    service: Counter[str] = field(default_factory=Counter)
    """By tenant, counted from the plans: what was computed, not what the scheduler thinks of it."""
    ended: set[str] = field(default_factory=set)
    now: int = 0
    first: dict[str, int] = field(default_factory=dict)
    """The step in which each sequence was computed for the first time."""
    spoke: dict[str, float] = field(default_factory=dict)
    """When each sequence got its first token."""
    names: int = 0
    left_out: set[str] = field(default_factory=set)
    """Tenants whose running answers got no token in the last step."""
    takes: Callable[[Plan], float] = lambda _: 0.1
    """Seconds of a step."""

    def __post_init__(self) -> None:
        device = torch.device("cpu")
        cache = KVCache(
            layers=1, rows=self.rows, kv_heads=1, length=1, head_dim=1, dtype=torch.float32, device=device, reuse=False
        )
        self.clock = Clock()
        self.scheduler = Scheduler(
            slots=SlotTable(self.slots), cache=cache, max_step_tokens=self.budget, clock=self.clock
        )

    def add(
        self, tenant: str, prompt: int, answer: int | None, *, adapter: str | None = None, priority: int = 0
    ) -> str:
        """Queue a prompt to continue, or with no answer a text to classify; returns its name."""
        self.names += 1
        sequence = Sequence(
            f"{tenant}{self.names}",
            [7] * prompt,
            adapter=NamedAdapter(adapter) if adapter else None,  # type: ignore[arg-type]
            sampling=None if answer is None else SamplingParams(max_tokens=answer),
            scope=tenant,
            share=self.shares.get(tenant, 1.0),
            priority=priority,
        )
        sequence.arrived_at = self.clock.now
        self.scheduler.add(sequence)
        return sequence.request_id

    def step(self) -> Plan:
        """Schedule, compute, and check whatever has to hold after every step."""
        plan = self.scheduler.schedule()
        self.check_left_out(plan)
        self.clock.now += self.takes(plan)
        budget = max(self.budget, len(self.scheduler.running))
        texts = [item for item in plan.work if item.sequence.classifies]
        assert sum(item.tokens for item in plan.work if not item.sequence.classifies) <= budget
        assert len(texts) <= 1 or sum(item.tokens for item in texts) <= budget
        for item in plan.work:
            sequence, tenant = item.sequence, item.sequence.scope
            self.first.setdefault(sequence.request_id, self.now)
            if not sequence.classifies and item.tokens == sequence.pending:
                self.spoke.setdefault(sequence.request_id, self.clock.now)
            generates = not sequence.classifies and item.tokens == sequence.pending
            decodes = sequence.decoding and generates and item.tokens == 1
            self.service[tenant] += round(not decodes and PROMPT_WEIGHT * item.tokens) + round(
                generates and GENERATED_WEIGHT
            )
            sequence.computed += item.tokens
            if generates:
                sequence.tokens.append(7)
            if sequence.classifies or (generates and sequence.completion_tokens >= sequence.params.max_tokens):
                self.scheduler.finish(sequence)
                self.ended.add(sequence.request_id)
        self.scheduler.check_integrity()
        self.now += 1
        return plan

    def check_left_out(self, plan: Plan) -> None:
        """Who is left out of a step leaves it to another's prompt, as a whole, and never twice in a row."""
        busy = {item.sequence.scope for item in plan.work}
        running = {sequence.key: sequence for sequence in self.scheduler.running if sequence.row is not None}
        for item in plan.work:
            running.pop(item.sequence.key, None)
        left_out = {sequence.scope for sequence in running.values() if sequence.decoding and sequence.pending == 1}
        assert not left_out & busy, "some of a tenant's answers are left out"
        assert not left_out & self.left_out, "left out twice"
        assert not left_out or any(item.tokens == item.sequence.pending for item in plan.work), "for nothing"
        self.left_out = left_out

    def remove(self, name: str) -> set[str]:
        return {sequence.request_id for sequence in self.scheduler.remove(lambda sequence: sequence.request_id == name)}

    def finish_all(self, most: int = 10_000) -> None:
        """Step until nothing is left; a step that computes nothing while there is work never happens."""
        for _ in range(most):
            if not self.scheduler.has_work():
                return
            assert self.step().work, "idle, and something waits"
        raise AssertionError("somebody starves")

    def backlog(self, tenant: str, rng: random.Random, *, prompt: int = PROMPT, answer: int = ANSWER) -> None:
        """See to it that a tenant has more waiting than there are rows."""
        while self.scheduler.waiting_by_tenant.get(tenant, 0) <= self.rows:
            self.add(tenant, rng.randint(1, prompt), rng.randint(1, answer))

    def served(self, tenant: str) -> float:
        return self.service[tenant] / self.shares.get(tenant, 1.0)


# ── the bound ─────────────────────────────────────────────────────────────────────────────────────────────────

SHARES = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4)


def bound(shares: list[float]) -> float:
    """The most by which the service of two tenants with a backlog may differ: twice what the batch has room for."""
    return 2 * (PROMPT_WEIGHT * PROMPT + GENERATED_WEIGHT * ROWS * ANSWER) / min(shares)


@settings(max_examples=40)
@given(SHARES, st.integers(0, 2**32), st.integers(20, 150))
def test_tenants_with_a_backlog_get_service_by_their_shares(shares: list[float], seed: int, steps: int) -> None:
    rng = random.Random(seed)
    sim = Simulation(shares={f"t{i}": share for i, share in enumerate(shares)})
    for _ in range(steps):
        for tenant in sim.shares:
            sim.backlog(tenant, rng)
        sim.step()
        levels = [sim.served(tenant) for tenant in sim.shares]
        assert max(levels) - min(levels) <= bound(shares)


def test_the_bound_is_one_that_first_come_first_served_breaks() -> None:
    sim = Simulation()
    for _ in range(100):
        for _ in range(10):
            sim.add("", PROMPT, ANSWER)  # both are one tenant to the scheduler
    sim.add("", PROMPT, ANSWER)
    while len(sim.ended) < 500:
        sim.step()
    assert sim.service[""] > 4 * bound([1.0, 1.0])


def test_shares_are_kept_in_the_ratio() -> None:
    sim, rng = Simulation(rows=8, shares={"one": 1.0, "two": 2.0, "five": 5.0}), random.Random(1)
    for _ in range(3000):
        for tenant in sim.shares:
            sim.backlog(tenant, rng)
        sim.step()
    assert sim.service["two"] / sim.service["one"] == pytest.approx(2, rel=0.05)
    assert sim.service["five"] / sim.service["one"] == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("how", ["requests", "adapters", "long", "texts"])
def test_nothing_is_gained_by_splitting_work_or_by_sending_more(how: str) -> None:
    sim, rng = Simulation(rows=4, slots=4), random.Random(2)
    for step in range(1500):
        sim.backlog("plain", rng)
        if sim.scheduler.waiting_by_tenant.get("greedy", 0) < 60:
            for k in range(30):
                answer = {"requests": 1, "adapters": ANSWER, "long": 10 * ANSWER, "texts": None}[how]
                prompt = 1 if how == "requests" else PROMPT
                sim.add("greedy", prompt, answer, adapter=f"a{(step + k) % 9}" if how != "long" else None)
        sim.step()
    assert sim.service["greedy"] <= 1.05 * sim.service["plain"]


def test_who_was_idle_has_saved_nothing_up() -> None:
    sim, rng = Simulation(), random.Random(3)
    for _ in range(400):
        sim.backlog("busy", rng)
        sim.step()
    before = sim.service["busy"]
    for _ in range(100):
        sim.backlog("busy", rng)
        sim.backlog("late", rng)
        sim.step()
    assert abs(sim.service["late"] - (sim.service["busy"] - before)) <= bound([1.0])


def test_who_comes_back_has_a_credit_and_no_more() -> None:
    counter = TokenCounter()
    for tenant in ("back", "often"):
        counter.arrive(tenant, 1.0)
        counter.leave(tenant)
    counter.arrive("busy", 1.0)
    counter.charge("busy", prompt=round(10 * CREDIT))
    counter.charge("often", prompt=round(9.5 * CREDIT))
    for tenant in ("back", "often"):  # the second is not lifted to the first, which has a credit
        counter.arrive(tenant, 1.0)
    assert (counter["back"], counter["often"], counter["new"]) == (9 * CREDIT, 9.5 * CREDIT, 10 * CREDIT)
    counter.leave("often")
    counter.arrive("often", 1.0)
    assert counter["often"] == 9.5 * CREDIT


# ── nothing is idle, nobody starves ───────────────────────────────────────────────────────────────────────────

WORK = st.tuples(
    st.integers(0, 12),  # when
    st.sampled_from("abc"),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([None, "x", "y", "z", "w"]),
    st.integers(-1, 1),
)


@settings(max_examples=150)
@given(st.lists(WORK, max_size=40), st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_whatever_arrives_is_served(work: list[tuple], rows: int, slots: int, rng: random.Random) -> None:
    sim = Simulation(rows=rows, slots=slots)
    removed: set[str] = set()
    names = set()
    for when, tenant, prompt, answer, adapter, priority in sorted(work, key=lambda item: item[0]):
        while sim.now < when:
            sim.step()
        names.add(sim.add(tenant, prompt, answer, adapter=adapter, priority=priority))
        if rng.random() < 0.1:
            victim = rng.choice(sorted(names))
            removed |= sim.remove(victim)
    sim.finish_all()
    assert sim.ended == names - removed
    assert sim.scheduler.slots.pins == 0
    assert not sim.scheduler.waiting


@settings(max_examples=60)
@given(st.lists(WORK, max_size=40), st.integers(1, 5))
def test_no_row_is_left_free_while_an_answer_waits(work: list[tuple], rows: int) -> None:
    sim = Simulation(rows=rows)
    for when, tenant, prompt, answer, _, priority in sorted(work, key=lambda item: item[0]):
        while sim.now < when:
            assert_conserves(sim)
        sim.add(tenant, prompt, answer or 1, priority=priority)
    while sim.scheduler.has_work():
        assert_conserves(sim)


def test_more_tenants_than_are_remembered_are_served() -> None:
    sim = Simulation(rows=32, slots=2, budget=512)
    names = {sim.add(f"t{number}-", 1, 1) for number in range(2_100)}
    sim.finish_all()
    assert sim.ended == names


def assert_conserves(sim: Simulation) -> None:
    """A step ends with its tokens spent, all rows taken or nothing waiting; beside another a tenant may get half.

    Steps from which a tenant was left out are looked past: what it might have had comes in the next.
    """
    scheduler, looking = sim.scheduler, True
    while looking:
        tenants = {sequence.scope for sequence in (*scheduler.waiting, *scheduler.running)}
        plan = sim.step()
        looking = bool(scheduler._gave_way)
    spent = sum(item.tokens for item in plan.work) >= (sim.budget if len(tenants) == 1 else sim.budget // 2)
    assert spent or not scheduler.waiting or len(plan.work) >= sim.rows, "room, and something waits"
    assert plan.work or not tenants


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    sim, rng = Simulation(), random.Random(4)
    names = [sim.add("only", rng.randint(1, 30), rng.randint(1, 20)) for _ in range(60)]
    sim.finish_all()
    assert sorted(names, key=lambda name: (sim.first[name], names.index(name))) == names
    assert sim.scheduler.preemptions == 0


def test_a_priority_orders_within_its_tenant_only() -> None:
    sim = Simulation(rows=1, budget=10)
    late, early = sim.add("a", 4, 1, priority=5), sim.add("a", 4, 1, priority=-5)
    other = sim.add("b", 4, 1, priority=9)
    more = [sim.add("a", 4, 1, priority=-9) for _ in range(3)]
    sim.finish_all()
    order = sorted(sim.first, key=sim.first.__getitem__)
    assert order.index(other) <= 1, "nobody's priority reaches beyond its tenant"
    assert [name for name in order if name != other] == [*more, early, late]


# ── a polite tenant beside one that floods ────────────────────────────────────────────────────────────────────


def flooded(sim: Simulation, *, adapters: int = 0, answer: int = 1000, prompt: int = 2) -> None:
    """Have one tenant take whatever there is, and go on wanting."""
    for k in range(60):
        sim.add("flood", prompt, answer, adapter=f"f{k % adapters}" if adapters else None)
    for _ in range(20):
        sim.step()


def test_long_answers_in_every_row_do_not_keep_another_waiting() -> None:
    sim = Simulation()
    flooded(sim)
    assert len(sim.scheduler.running) == ROWS
    for _ in range(30):
        name = sim.add("polite", 5, 3)
        asked = sim.now
        sim.step()
        assert sim.first[name] == asked
        for _ in range(4):
            sim.step()
    assert sim.scheduler.preemptions == 30


def test_long_answers_in_every_slot_do_not_keep_another_waiting() -> None:
    sim = Simulation(rows=8, slots=3)
    flooded(sim, adapters=9)
    assert sim.scheduler.slots.pins == 8
    for answer in (3, None):
        name = sim.add("polite", 5, answer, adapter="p")
        asked = sim.now
        sim.step()
        assert sim.first[name] == asked
        for _ in range(4):
            sim.step()
        assert name in sim.ended


def test_long_prompts_in_progress_do_not_keep_another_waiting() -> None:
    sim = Simulation()
    flooded(sim, prompt=50 * BUDGET, answer=1)
    for _ in range(10):
        name = sim.add("polite", BUDGET // 4, 1)
        plan = sim.step()
        assert name in sim.ended
        assert {item.sequence.scope: item.tokens for item in plan.work} == {"polite": BUDGET // 4, "flood": BUDGET // 2}
    plan = sim.step()
    assert [item.tokens for item in plan.work] == [BUDGET], "nothing is kept back for who is not there"


def test_answers_beyond_the_share_are_left_out_of_a_step_with_another_s_prompt() -> None:
    sim = Simulation()
    sim.add("polite", 2, 1)
    flooded(sim)
    shapes = []
    for _ in range(5):
        sim.add("polite", 5, 1)
        shapes.append(Counter(item.sequence.scope for item in sim.step().work))
    short, whole = {"polite": 1}, {"polite": 1, "flood": ROWS - 1}
    assert shapes == [short, whole, short, whole, short], "never twice in a row"
    assert sim.step().work, "and whoever was left out goes on"


def test_prompts_beyond_the_share_are_left_out_too() -> None:
    sim = Simulation(rows=8)
    flooded(sim)
    for _ in range(2):  # rows for prompts of the flood, which are in progress and wait
        sim.remove(sim.scheduler.running[0].request_id)
        sim.add("flood", 3 * BUDGET, 1, priority=-1)
    sim.step()
    sim.add("polite", 5, 1)
    assert {item.sequence.scope for item in sim.step().work} == {"polite"}
    assert {item.tokens for item in sim.step().work if item.tokens > 1} == {BUDGET - 6}


def test_nobody_within_its_share_is_left_out() -> None:
    sim = Simulation(rows=8)
    for _ in range(4):
        sim.add("one", 2, 100)
    sim.step()
    sim.add("two", 5, 1)
    assert len(sim.step().work) == 5


def test_nobody_is_left_out_where_that_saves_no_time() -> None:
    sim = Simulation()
    sim.scheduler.give_way = False
    flooded(sim)
    sim.add("polite", 5, 1)
    assert len(sim.step().work) == ROWS


def test_a_text_is_made_way_for_like_a_prompt() -> None:
    sim = Simulation()
    flooded(sim)
    sim.add("polite", 5, None)
    assert [item.sequence.scope for item in sim.step().work] == ["polite"]
    assert len(sim.step().work) == ROWS


def test_a_tenant_takes_no_more_than_its_share_of_rows() -> None:
    sim = Simulation(rows=8, shares={"flood": 1.0, "polite": 3.0})
    flooded(sim)
    for _ in range(20):
        sim.add("polite", 2, 1000)
    for _ in range(200):
        sim.step()
    assert Counter(sequence.scope for sequence in sim.scheduler.running) == {"flood": 3, "polite": 5}
    assert sim.scheduler.preemptions == 5, "of six that are due, as it wants more; and they do not go to and fro"


def test_tenants_that_both_have_a_backlog_stop_no_answers() -> None:
    sim, rng = Simulation(rows=16), random.Random(6)
    for step in range(1500):
        for tenant in ("one", "two"):
            sim.backlog(tenant, rng)
        sim.step()
        if step == 100:
            sim.scheduler.preemptions = 0
    assert sim.scheduler.preemptions == 0


def test_a_burst_that_fits_the_share_is_served_at_once() -> None:
    sim = Simulation(rows=8, budget=40)
    sim.add("polite", 2, 1)  # it has been here before, and so has a credit
    flooded(sim)
    names = [sim.add("polite", 2, 10) for _ in range(4)]
    sim.step()
    assert {sim.first[name] for name in names} == {20}


def test_rows_do_not_go_to_and_fro_where_tenants_are_more_than_rows() -> None:
    sim = Simulation(rows=2)
    for tenant in "abcdef":
        sim.add(tenant, 2, 30)
    sim.finish_all()
    assert sim.scheduler.preemptions == 0


CAPACITY = 13_000
"""Service a second that the steps below come to when there is always work."""


def step_seconds(plan: Plan) -> float:
    """What a step of the embedded base was measured to take on two cores."""
    prompts = sum(item.tokens for item in plan.work if item.tokens > 1)
    return 1e-3 * (0.95 + 0.145 * len(plan.work) + 0.05 * prompts)


def over_time(load: str, *, fair: bool, seconds: float = 12.0) -> tuple[float, float]:
    """The benchmark's two tenants for some simulated seconds: the polite one's p95, and service a second."""
    coming: list[Arrival] = []
    for name, kind in (("polite", POLITE), ("other", OTHER)):
        coming += arrivals(name, kind, LOADS[load][name] * CAPACITY / 2 / kind.service, seconds, 1)
    sim = Simulation(rows=32, slots=16, budget=512, takes=step_seconds)
    asked: dict[str, float] = {}
    for row in sorted(coming, key=lambda row: row.at):
        while sim.clock.now < row.at and sim.scheduler.has_work():
            sim.step()
        sim.clock.now = max(sim.clock.now, row.at)
        if row.tenant == "other" and len(sim.scheduler.waiting) > 256:
            continue  # refused
        name = sim.add(row.tenant if fair else "", row.prompt, row.answer, adapter=f"{row.tenant}{row.adapter}")
        if row.tenant == "polite" and row.at > 0.2 * seconds:
            asked[name] = row.at
    times = [sim.spoke.get(name, seconds) - at for name, at in asked.items()]
    return percentile(times, 0.95), sum(sim.service.values()) / sim.clock.now


def test_a_flood_changes_a_polite_tenant_s_p95_by_a_quarter_at_most_and_costs_nothing() -> None:
    share, _ = over_time("share", fair=True)
    flood, service = over_time("flood", fair=True)
    rival, most = over_time("flood", fair=False)
    assert flood <= 1.25 * share
    assert rival > 20 * share
    assert service >= 0.95 * most


def test_a_stopped_answer_goes_on_before_what_came_later() -> None:
    sim = Simulation(rows=2)
    first, second, third = (sim.add("flood", 2, 30) for _ in range(3))
    sim.step()
    sim.step()
    sim.add("polite", 2, 2)
    sim.step()
    assert [sequence.request_id for sequence in sim.scheduler.waiting] == [second, third]
    stopped = sim.scheduler.waiting[0]
    assert (stopped.preempted, stopped.completion_tokens, stopped.computed, stopped.row) == (1, 2, 0, None)
    sim.finish_all()
    assert sim.first[third] > 20
    assert sim.ended >= {first, second, third}


def test_a_stopped_answer_says_what_it_would_have_said(llama: Zoo, cpu_kernels: str) -> None:
    def asked(name: str, tenant: str, adapter: str | None, **params: object) -> Sequence:
        sequence = generation(name, llama.ids(f"the quick {name} fox"), llama.adapters.get(adapter or ""), **params)
        sequence.scope = tenant
        return sequence

    def flood() -> list[Sequence]:
        sampled = {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.3, "stop": ("zzzz",)}
        return [
            asked("one", "flood", "small", max_tokens=24),
            asked("two", "flood", "wide", max_tokens=24, **sampled),
            asked("three", "flood", None, max_tokens=24, **sampled),
            asked("four", "flood", None, max_tokens=24),
        ]

    wanted = {
        sequence.request_id: drain(llama.engine(kernels=cpu_kernels), sequence)[sequence.request_id]
        for sequence in flood()
    }
    engine = llama.engine(kernels=cpu_kernels, max_running=4, adapter_slots=2)
    for sequence in flood():
        engine.submit(sequence)
    found = {name: Outcome() for name in ("one", "two", "three", "four", *"pqrst")}
    left_out = 0
    for polite in "pqrst":
        for _ in range(3):
            events = engine.step()
            left_out += bool(events) and {event.request_id for event in events} <= set("pqrst")
            for event in events:
                found[event.request_id].add(event)
        engine._scheduler.check_integrity()
        engine.submit(asked(polite, "polite", "patterns" if polite in "qs" else None, max_tokens=2))
    while engine.has_work():
        for event in engine.step():
            found[event.request_id].add(event)
    assert_idle(engine)
    assert engine._scheduler.preemptions >= 4
    assert left_out >= 4, "the flood was left out of too few steps"
    for name, outcome in wanted.items():
        assert (found[name].tokens, found[name].text) == (outcome.tokens, outcome.text)
        finished = found[name].finished
        assert finished is not None
        assert (finished.prompt_tokens, finished.completion_tokens, finished.reason) == (
            len(llama.ids(f"the quick {name} fox")), 24, "length",
        )  # fmt: skip


# ── the counter itself ────────────────────────────────────────────────────────────────────────────────────────


def test_a_tenant_is_lifted_to_the_least_served_of_those_who_wait() -> None:
    counter = TokenCounter()
    counter.arrive("a", 1.0)
    counter.charge("a", prompt=10, generated=5)
    counter.arrive("b", 2.0)
    assert (counter["a"], counter["b"], counter["new"]) == (20, 20, 20)
    counter.charge("b", prompt=10)
    assert counter["b"] == 25
    counter.arrive("c", 1.0)
    assert counter["c"] == 20
    counter.leave("c")
    counter.charge("c", prompt=100)
    counter.arrive("c", 1.0)
    assert counter["c"] == 120, "what was served is not forgotten by leaving"
    counter.check_integrity({"a": 1, "b": 1, "c": 1})
    with pytest.raises(AssertionError, match="counted as waiting"):
        counter.check_integrity({"a": 1, "b": 1})


def test_where_nobody_waits_a_tenant_begins_with_the_one_that_waited_last() -> None:
    counter = TokenCounter()
    counter.arrive("a", 1.0)
    counter.leave("a")
    counter.charge("a", generated=50)
    counter.arrive("b", 1.0)
    assert counter["b"] == 100


def test_counters_of_idle_tenants_are_bounded_in_number() -> None:
    counter = TokenCounter()
    counter.arrive("stays", 1.0)
    for k in range(5 * IDLE_KEPT):
        counter.arrive(f"t{k}", 1.0)
        counter.charge(f"t{k}", prompt=1 + k % 7)
        counter.leave(f"t{k}")
        assert len(counter) <= 2 * IDLE_KEPT + 1
    assert counter["stays"] == 0
    counter.check_integrity({"stays": 1})


def test_only_who_holds_too_much_owes_anything() -> None:
    counter = TokenCounter()
    for tenant in ("flood", "other", "polite"):
        counter.arrive(tenant, 1.0)
    counter.charge("flood", prompt=90)
    counter.charge("other", prompt=50)
    assert counter.owing("polite", {"flood": 20, "other": 12}, 32) == ["flood", "other"]
    assert counter.owing("polite", {"flood": 21, "other": 11}, 32) == ["flood"]
    assert counter.owing("polite", {"flood": 11, "other": 10, "polite": 11}, 32) == []
    assert counter.owing("polite", {"flood": 23, "polite": 9}, 32) == ["flood"], "up to its due, as it wants no more"
    counter.arrive("polite", 1.0)
    assert counter.owing("polite", {"flood": 23, "polite": 9}, 32) == [], "or while it holds clearly less"
    assert counter.owing("polite", {"flood": 25, "polite": 7}, 32) == ["flood"]
    assert counter.owing("flood", {"other": 31, "flood": 1}, 32) == [], "who was served more takes nothing"


def test_a_share_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Sequence("r", [1], share=0.0)
