"""What a gate finds, asked of a real engine that runs in the same thread."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adapters.adapter import load_adapter
from adapters.audit import read_events
from adapters.cache import HostCache
from adapters.errors import AdapterNotFoundError
from adapters.names import AdapterName
from adapters.store import Store
from service.asides import Asides
from service.encode import Encoder
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from service.errors import DeadlineExceededError, GateFailedError
from service.gate.checks import Checker
from service.gate.keeper import Gatekeeper
from service.gate.rules import GateRules
from service.gate.verdict import Finding, Verdict
from service.ready import Ready
from tests.service.conftest import Home

WRITE, LABEL, REWARD = AdapterName("acme", "write"), AdapterName("acme", "label"), AdapterName("beta", "reward")
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def engine(home: Home) -> Engine:
    return Engine(home.base, EngineConfig(dtype="float32"))


@pytest.fixture
def store(home: Home, tmp_path: Path) -> Store:
    return Store(home.copied(tmp_path / "store"))


class Bench:
    """A gatekeeper whose engine runs whenever it is given work."""

    def __init__(self, home: Home, store: Store, engine: Engine) -> None:
        self.store, self.engine = store, engine
        self.encoder = Encoder(home.base, engine.max_model_len)
        self.cache = HostCache(
            1 << 30,
            lambda version: engine.pack(
                load_adapter(version.path, home.base, digest=version.digest, ref=str(version.name))
            ),
        )
        asides = Asides()
        asides.connect(self.run)
        self.keeper = Gatekeeper(store, Checker(home.base, self.cache, self.encoder, asides))

    def run(self, ready: Ready) -> None:
        assert ready.sink is not None
        for sequence in ready.sequences:
            self.engine.submit(sequence)
        while self.engine.has_work():
            for event in self.engine.step():
                ready.sink(event)

    def check(self, name: AdapterName, **rules: Any) -> dict[str, Finding]:
        digest = self.store.aliases(name)["latest"]
        self.keeper.gates.set(name, "stable", GateRules.model_validate(rules), by="test")
        verdict = self.keeper.check(name, "stable", digest, by="test")
        assert verdict == self.keeper.gates.verdicts(name)[0]
        return {finding.check: finding for finding in verdict.findings}

    def ids(self, instruction: str, tokens: int = 4) -> tuple[list[int], list[int]]:
        """What acme/write makes of an instruction: its prompt and its greedy answer."""
        version = self.store.versions(WRITE)[-1]
        adapter = self.cache.get(version)
        prompt = adapter.template.encode(self.encoder._tokenizer, _instruction(instruction))  # type: ignore[union-attr]
        found: list[int] = []
        greedy = SamplingParams(max_tokens=tokens, temperature=0.0)
        sink = lambda event: found.extend(getattr(event, "token_ids", ()))
        self.run(Ready("x", [Sequence("x", prompt, adapter=adapter, sampling=greedy)], 1, cold=False, sink=sink))
        return list(prompt), found


def _instruction(text: str) -> Any:
    from adapters.templates import PromptInput

    return PromptInput.from_instruction(text, "")


@pytest.fixture
def bench(home: Home, store: Store, engine: Engine) -> Bench:
    return Bench(home, store, engine)


def republish(bench: Bench, home: Home, name: AdapterName, change: Callable[[dict[str, Any]], None], to: Path) -> None:
    """A version with other tensors becomes the newest one of the name."""
    shutil.copytree(home.folders / str(name).replace("/", "-"), to)
    tensors = load_file(to / FILE)
    change(tensors)
    save_file(tensors, to / FILE)
    kept = bench.store.versions(name)[0].path / "tenora.json"
    shutil.copy(kept, to / "tenora.json")
    bench.store.publish(to, name, home.base)


def test_a_good_version_passes(bench: Bench) -> None:
    found = bench.check(WRITE)
    assert list(found) == ["loads", "finite", "differs"]
    assert all(finding.passed for finding in found.values()), found
    for name in (LABEL, REWARD):
        found = bench.check(name, stops_within=4)
        assert list(found) == ["loads", "finite", "differs"]
        assert all(finding.passed for finding in found.values()), found


def test_what_says_what_the_base_says(bench: Bench, home: Home, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Any]) -> None:
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor.zero_()

    republish(bench, home, WRITE, zero, tmp_path / "zero")
    found = bench.check(WRITE)
    assert not found["differs"].passed
    assert "what the base says" in found["differs"].detail
    assert "differs" not in bench.check(WRITE, differs=False)


def test_next_to_nothing_is_no_difference(bench: Bench, home: Home, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, Any]) -> None:
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor.mul_(1e-6)

    republish(bench, home, WRITE, shrink, tmp_path / "tiny")
    assert bench.check(WRITE)["differs"].detail == "its answers to the probes are the base's own"


def test_numbers_too_large_are_found(bench: Bench, home: Home, tmp_path: Path) -> None:
    def blow(tensors: dict[str, Any]) -> None:
        for tensor in tensors.values():
            tensor.fill_(1e38)

    republish(bench, home, WRITE, blow, tmp_path / "huge")
    found = bench.check(WRITE)
    assert found["loads"].passed
    assert not found["finite"].passed


def test_damage_on_the_disk_is_found(bench: Bench) -> None:
    version = bench.store.versions(WRITE)[0]
    bench.cache.get(version)  # in memory it is whole
    (version.path / FILE).write_bytes(b"\0" * 64)
    found = bench.check(WRITE)
    assert list(found) == ["loads"]
    assert not found["loads"].passed


def test_answers_that_do_not_end(bench: Bench) -> None:
    found = bench.check(WRITE, stops_within=3)["stops"]
    assert not found.passed
    assert found.detail == "1 of 1 answers do not end within 3 tokens"


def test_golden_prompts_by_token_ids(bench: Bench) -> None:
    prompt, answer = bench.ids("Name a colour.")
    golden = {"instruction": "Name a colour.", "prompt_ids": prompt, "answer_ids": answer}
    assert bench.check(WRITE, prompts=[golden])["prompts"].passed
    wrong = bench.check(WRITE, prompts=[golden, {**golden, "prompt_ids": [*prompt[:-1], prompt[-1] + 1]}])["prompts"]
    assert not wrong.passed
    assert f"prompts[1] is rendered to other token ids: at {len(prompt) - 1}" in wrong.detail
    wrong = bench.check(WRITE, prompts=[{**golden, "answer_ids": [*answer[:2], answer[2] + 1]}])["prompts"]
    assert f"prompts[0] is answered with other token ids: at 2 there is {answer[2]}" in wrong.detail
    longer = bench.check(WRITE, prompts=[{**golden, "prompt_ids": [*prompt, 5]}])["prompts"]
    assert longer.detail.endswith(f"at {len(prompt)} there is nothing where 5 is asked for")


def test_a_golden_set_of_labels(bench: Bench) -> None:
    texts = [f"text number {number}" for number in range(12)]
    rows = [{"text": text, "expected": "good"} for text in texts]
    told = bench.check(LABEL, golden_set={"rows": rows, "at_least": 0})["golden_set"].detail
    part = float(told.split()[1])
    assert bench.check(LABEL, golden_set={"rows": rows, "at_least": part - 0.01})["golden_set"].passed
    failed = bench.check(LABEL, golden_set={"rows": rows, "at_least": min(1.0, part + 0.1)})["golden_set"]
    assert failed.passed == (part == 1.0)
    other = bench.check(LABEL, golden_set={"rows": [{"text": "x", "expected": "ugly"}], "at_least": 0.5})["golden_set"]
    assert other.detail == "'ugly' is none of its labels (bad, good)"


def test_a_golden_set_of_answers(bench: Bench) -> None:
    rows = [{"text": "Name a colour.", "expected": "surely not this"}]
    found = bench.check(WRITE, golden_set={"rows": rows, "at_least": 0.5}, stops_within=None)["golden_set"]
    assert found.detail == "exact match 0.000 on 1 rows, at least 0.5 is asked"
    assert not found.passed


def test_latency_is_compared_with_what_is_there(bench: Bench, home: Home, tmp_path: Path) -> None:
    assert bench.check(WRITE, latency_ratio=2)["latency"].detail == "there is nothing to compare with"
    first = bench.store.aliases(WRITE)["latest"]
    bench.store.set_alias(WRITE, "stable", first, admitted=True)
    republish(bench, home, WRITE, lambda tensors: tensors[min(tensors)].add_(1), tmp_path / "other")
    assert bench.check(WRITE, latency_ratio=100)["latency"].passed
    slow = bench.check(WRITE, latency_ratio=1e-6)["latency"]
    assert not slow.passed
    assert "times what the present one takes" in slow.detail


def test_the_time_of_all_checks_is_bounded(bench: Bench) -> None:
    found = bench.check(WRITE, timeout=1e-6)
    assert found["finite"] == Finding("finite", False, "the time for all checks was up (timeout)")


def test_an_engine_that_does_not_answer() -> None:
    asides = Asides()
    asides.connect(lambda ready: None)
    with pytest.raises(DeadlineExceededError):
        asides.run(lambda request_id: [Sequence(request_id, [1])], within=0.05)


# Letting through


def test_a_gate_lets_through_what_passes(bench: Bench) -> None:
    digest = bench.store.aliases(WRITE)["latest"]
    keeper = bench.keeper
    assert keeper.admit(WRITE, "stable", digest, by="test", force=False) is None
    keeper.gates.set(WRITE, "stable", GateRules(stops_within=2), by="test")  # type: ignore[call-arg]
    with pytest.raises(GateFailedError, match=r"stops: 1 of 1 answers do not end"):
        keeper.admit(WRITE, "stable", digest, by="key-1", force=False)
    forced = keeper.admit(WRITE, "stable", digest[:12], by="key-2", force=True)
    assert isinstance(forced, Verdict)
    assert not forced.passed
    keeper.gates.set(WRITE, "stable", GateRules(), by="test")  # type: ignore[call-arg]
    passed = keeper.admit(WRITE, "stable", digest, by="key-3", force=False)
    assert passed is not None
    assert passed.passed
    told = [(event.action, event.actor, event.detail) for event in read_events(bench.store.database, most=5)]
    assert told == [
        ("pass_gate", "key-3", {"failed": []}),
        ("set_gate", "test", {}),
        ("force_gate", "key-2", {"failed": ["stops"]}),
        ("fail_gate", "key-1", {"failed": ["stops"]}),
        ("set_gate", "test", {}),
    ]
    assert [verdict.passed for verdict in keeper.gates.verdicts(WRITE, digest)] == [True, False, False]
    assert keeper.demanding(WRITE, ("latest", "stable")) == ("stable",)
    assert keeper.gates.remove(WRITE, "stable", by="test")
    assert not keeper.gates.remove(WRITE, "stable", by="test")
    assert keeper.demanding(WRITE, ("latest", "stable")) == ()
    with pytest.raises(AdapterNotFoundError):
        keeper.check(WRITE, "stable", "f" * 12, by="test")


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ({"colour": 1}, "colour"),
        ({"prompts": [{"instruction": "x"}]}, "prompt_ids, answer_ids, or both"),
        ({"golden_set": {"rows": [], "at_least": 0.5}}, "rows"),
        ({"golden_set": {"rows": [{"text": "x", "expected": "y"}], "at_least": 1.5}}, "at_least"),
        ({"latency_ratio": 0}, "latency_ratio"),
        ({"stops_within": 0}, "stops_within"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        GateRules.model_validate(rules)
