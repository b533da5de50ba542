"""The bench's adapters are PEFT's and Tenora's alike, and both compute the same with them."""

from pathlib import Path

import pytest

from adapters.adapter import load_adapter
from adapters.base import BaseSource
from bench.models import make_tokenizer
from bench.random_adapters import peft_template, write_missing
from bench.systems.peft_model import PeftSystem
from bench.systems.tenora_engine import TenoraEngine
from bench.workloads import prompts
from service.engine.events import TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence

CONFIG = {"dtype": "float32", "max_running": 4, "adapter_slots": 4}
VOCABULARY = 700


@pytest.fixture(scope="module")
def folders(llama: BaseSource, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return write_missing(llama, peft_template(llama, rank=4), [root / f"a{k}" for k in range(3)])


def first_logprobs(engine: TenoraEngine, ids: list[int], index: int) -> dict[str, float]:
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=5, ignore_eos=True)
    engine.engine.submit(Sequence("r", ids, adapter=engine.adapters[index], sampling=params))
    (event,) = [event for event in engine.engine.step() if isinstance(event, TokenEvent)]
    assert event.logprobs is not None
    return {top.token: top.logprob for top in event.logprobs[0].top}


def test_adapters_differ_and_cover_every_linear(llama: BaseSource, folders: list[Path]) -> None:
    adapters = [load_adapter(folder, llama) for folder in folders]
    assert len({adapter.digest for adapter in adapters}) == 3
    assert adapters[0].weights.pairs.keys() == llama.linear_shapes().keys() - {"lm_head"}
    assert adapters[0].weights.max_rank == 4


def test_peft_and_tenora_compute_the_same(llama: BaseSource, folders: list[Path]) -> None:
    engine = TenoraEngine(base=str(llama.path), adapters=folders, **CONFIG)
    peft = PeftSystem(base=str(llama.path), adapters=folders, dtype="float32")
    ids = prompts(1, 12, VOCABULARY, seed=1)[0]
    tokenizer, seen = llama.tokenizer(), set()
    for index in range(3):
        expected = peft.logits([ids], index)[0].log_softmax(-1)
        ours = first_logprobs(engine, ids, index)
        values, tokens = expected.topk(5)
        theirs = dict(zip(map(tokenizer.decode, tokens), values.tolist(), strict=True))
        assert ours.keys() == theirs.keys()
        assert all(ours[token] == pytest.approx(theirs[token], abs=1e-4) for token in ours)
        seen.add(tuple(ours.items()))
    assert len(seen) == 3


def test_a_mixed_batch_is_generated_by_both(llama: BaseSource, folders: list[Path]) -> None:
    engine = TenoraEngine(base=str(llama.path), adapters=folders, **CONFIG)
    peft = PeftSystem(base=str(llama.path), adapters=folders, dtype="float32")
    batch = prompts(3, 8, VOCABULARY, seed=2)
    assert engine.throughput(batch, [0, 1, None], 5) == 15
    assert peft.mixed(batch, [0, 1, 2], 5) == 15
    assert peft.one_at_a_time(batch, [0, 1, 2], 5) == 15
    assert len(engine.decode_ms(batch, [0, 1, 2], 5)) == 4


def test_classifiers_have_heads_of_their_own(distilbert: BaseSource, tmp_path: Path) -> None:
    folders = []
    for number, labels in enumerate((3, 3, 5)):
        template = peft_template(distilbert, rank=4, num_labels=labels)
        folders += write_missing(distilbert, template, [tmp_path / f"c{number}"], first=number)
    engine = TenoraEngine(base=str(distilbert.path), adapters=folders, **CONFIG)
    peft = PeftSystem(base=str(distilbert.path), adapters=folders[:2], dtype="float32", num_labels=3)
    batch = [prompts(1, length, VOCABULARY, length)[0] for length in (20, 35, 50)]
    ours, theirs = engine.classify(batch, [0, 1, 0]), peft.classify(batch, [0, 1, 0])
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(ours, theirs, strict=True))
    assert [len(row) for row in engine.classify(batch, [0, 1, 2])] == [3, 3, 5]


def test_the_tokenizer_has_as_many_tokens_as_asked_for() -> None:
    tokenizer = make_tokenizer(30_522, 512)
    assert len(tokenizer) == 30_522
    assert tokenizer.decode(tokenizer("round trips, even of Ä and 你").input_ids) == "round trips, even of Ä and 你"
