"""Pre-training: which text goes in, that a run goes on where it was stopped, and what it leaves."""

import json
import lzma
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapters.base import resolve_base
from models import pretrain
from models.pretrain import END, Trainer, exercises, mixed, read_documents, rendered, short_sentences, split, to_rows

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = [
    "The dog ran over the hill.",
    "My sister has a red boat.",
    "They went home before the rain came.",
    "Nobody knows where the old key is.",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    documents = ["\n".join(generator.choices(SENTENCES, k=30)) + f"\nEnd {i}." for i in range(120)]
    with lzma.open(folder / "tales.txt.xz", "wt") as file:
        file.write(f"\n{END}\n".join(documents[:80]))
    (folder / "notes.txt").write_text(f"\n{END}\n".join(documents[80:]))
    return folder


def arguments(corpus: Path, output: Path, *options: str) -> list[str]:
    given = [str(corpus), "--output", str(output), "--no-compile", "--hidden", "64", "--layers", "1"]
    given += ["--vocabulary", "400", "--batch", "2", "--steps", "8", "--exercises", "40", "--save-every", "3"]
    return [*given, *options]


@pytest.fixture
def run(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the script in this process; only the first process costs more than the run."""

    def go(output: Path, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["pretrain", *arguments(corpus, output, *options)])
        pretrain.main()

    return go


def test_documents_are_read_and_some_are_held_out(corpus: Path) -> None:
    documents = read_documents(corpus)
    assert {name: len(texts) for name, texts in documents.items()} == {"notes": 40, "tales": 80}
    training, held_out = split(documents)
    for name, texts in documents.items():
        assert held_out[name], name
        assert not set(held_out[name]) & set(training[name])
        assert sorted(held_out[name] + training[name]) == sorted(texts)


def test_a_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} " + "goes on and on " * 40 for i in range(40)]
    (tmp_path / "plain.txt").write_text("\n\n".join(paragraphs))
    (documents,) = read_documents(tmp_path).values()
    assert 5 <= len(documents) <= 7
    assert all(text.startswith("Paragraph") for text in documents)
    assert "\n\n".join(documents).replace("\n\n\n", "\n\n").split() == "\n\n".join(paragraphs).split()
    training, held_out = split({"plain": documents, "one": ["A single text."]})
    assert len(held_out["plain"]) == 1
    assert (training["one"], held_out["one"]) == (["A single text."], [])


def test_no_source_is_lost(tmp_path: Path) -> None:
    for name in ("book.part1.txt", "book.part2.txt"):
        (tmp_path / name).write_text(name)
    assert set(read_documents(tmp_path)) == {"book.part1", "book.part2"}
    (tmp_path / "book.part1.txt.xz").write_bytes(lzma.compress(b"again"))
    with pytest.raises(SystemExit, match=r"a source book\.part1 already"):
        read_documents(tmp_path)


def test_what_is_held_out_is_bounded_and_text_without_sentences_has_no_exercises() -> None:
    texts = ["x" * 1_000_000, *(f"kurzer text {i}" for i in range(90))]
    training, held_out = split({"long": texts})
    assert held_out["long"] == []
    assert training["long"] == texts
    assert list(exercises([], 10, random.Random(0))) == []


def test_a_folder_without_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no"):
        read_documents(tmp_path)


def test_exercises_say_nothing_but_the_sentence(corpus: Path) -> None:
    sentences = short_sentences(read_documents(corpus))
    assert set(sentences) == set(SENTENCES)
    rows = list(exercises(sentences, 300, random.Random(1)))
    assert len(rows) == 300
    assert len({row[0].split(":")[0].split('"')[0] for row in rows}) > 15, "many ways to ask"
    for instruction, given, output in rows:
        known = set(re.findall(r"[\w']+", f"{instruction} {given}".lower()))
        unknown = set(re.findall(r"[\w']+", output.lower())) - known
        gap = "missing" in instruction or "fitting" in instruction
        rest = "Finish" in instruction or "Continue" in instruction
        assert rest or len(unknown) <= gap, (instruction, given, output)


def test_rows_are_rendered_as_serving_does() -> None:
    tokenizer = resolve_base("embedded").tokenizer()
    texts = {rendered(("Say it again.", "A cat.", "A cat."), tokenizer, random.Random(seed)) for seed in range(20)}
    assert texts == {
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay it again.\n\n### Input:\nA cat.\n\n### Response:\nA cat.",
        "<|user|>\nSay it again.\n\nA cat.\n<|assistant|>\nA cat.",
    }


def test_documents_are_parted_by_one_end() -> None:
    tokenizer = resolve_base("embedded").tokenizer()
    texts = [f"This is the story of number {i}." for i in range(200)]
    rows = to_rows(texts, tokenizer, random.Random(0))
    assert rows.shape[1] == pretrain.CONTEXT + 1
    read = [part for row in rows for part in tokenizer.decode(row).split(END)[1:-1]]
    assert len(read) > 150
    assert set(read) <= set(texts)


def test_sources_are_mixed_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SHARES", {"a": (0.75, 0.2), "b": (0.25, 0.4), "late": (0.0, 0.4)})
    parts = {"a": np.full((7, 3), 1), "b": np.full((500, 3), 2), "late": np.full((50, 3), 3)}
    stream = mixed({name: part.astype(np.uint16) for name, part in parts.items()}, 100, seed=0)
    assert stream.shape == (100, 3)
    first, last = stream[:50, 0], stream[50:, 0]
    assert [int((first == i).sum()) for i in (1, 2, 3)] == [38, 12, 0]
    assert [int((last == i).sum()) for i in (1, 2, 3)] == [10, 20, 20]


def test_rows_come_again_only_once_all_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SHARES", {"a": (1.0, 1.0)})
    rows = np.arange(30, dtype=np.uint16)[:, None]
    counts = np.bincount(mixed({"a": rows}, 75, seed=0)[:, 0])
    assert set(counts.tolist()) == {2, 3}


def test_the_head_s_gradients_are_torch_s() -> None:
    """Whole chunks of 512 positions and a rest."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(700, 24, requires_grad=True), torch.randn(60, 24, requires_grad=True)
    targets = torch.randint(0, 60, (700,))
    loss = pretrain.Head.apply(hidden, weight, targets, pretrain.losses_and_gradient)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    for own, theirs in zip(found, torch.autograd.grad(3 * expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(
            pretrain.Head.apply(hidden, weight, targets, pretrain.losses_and_gradient), expected, rtol=1e-5, atol=1e-5
        )


def test_the_rate_rises_holds_and_falls_to_nothing() -> None:
    plan = pretrain.Plan(steps=1000, batch=1, matrix_rate=1.0, other_rate=1.0)
    rates = [plan.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:500] == [1.0] * 400
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert rates[-1] < 0.003


class StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "undisturbed")
    take_step = Trainer.train

    def stop_at_five(trainer: Trainer, rows: torch.Tensor) -> float:
        if trainer.step == 5:
            raise StoppedError
        return take_step(trainer, rows)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Trainer, "train", stop_at_five)
        run(tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt")["step"] == 3
    run(tmp_path / "stopped")
    one, other = (load_file(tmp_path / name / "base" / "model.safetensors") for name in ("undisturbed", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("undisturbed", "stopped")]
    ends = [{key: json.loads(log[-1])[key] for key in ("step", "held_out")} for log in logs]
    assert ends[0] == ends[1]


def test_the_command_makes_a_base_that_goes_on_from_another(
    corpus: Path, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    row = json.dumps({"instruction": "Name a colour.", "input": "", "output": "Red."}) + "\n"
    rows.write_text(row * 60)
    command = [sys.executable, "-m", "models.pretrain", *arguments(corpus, tmp_path / "first")]
    command += ["--instructions", str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "instructions  " in done.stdout
    base = resolve_base(str(tmp_path / "first" / "base"))
    assert base.kind == "decoder"
    assert (tmp_path / "first" / "loss.png").stat().st_size > 5_000
    tokenizer = base.tokenizer()
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == pretrain.SPECIAL
    assert tokenizer.decode(tokenizer("A café, 7 naïve cats\n")["input_ids"]) == "A café, 7 naïve cats\n"
    rows.write_text(row)
    run(tmp_path / "second", "--first", str(tmp_path / "first" / "base"), "--instructions", str(rows))
    assert "instructions is left out" in capsys.readouterr().out
    second = resolve_base(str(tmp_path / "second" / "base"))
    assert second.fingerprint != base.fingerprint
    assert second.tokenizer().get_vocab() == tokenizer.get_vocab()


def test_another_plan_does_not_go_on_in_the_same_folder(run: Callable[..., None], tmp_path: Path) -> None:
    run(tmp_path)
    for option, said in (("--matrix-rate", "belongs to another plan"), ("--seed", "belongs to another run")):
        with pytest.raises(SystemExit, match=said):
            run(tmp_path, option, "1")
