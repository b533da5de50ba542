"""What is shown of a run: before it, while it works, and for programs; and where rows may come from."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.training.conftest import INSTRUCTIONS, REVIEWS, write_jsonl
from tests.training.evaluation.judge_server import Say, judge_server
from tests.training.running import Command, config, flags_of, quiet, run, said
from training.dry_run import rendered
from training.errors import TrainingError
from training.evaluation.judge import Judge
from training.progress import JsonLines, Shown
from training.reporting.results import Point, Sample, Step
from training.run import train

Tiny = Callable[[str], Path]


def dry(task: str, folder: Path, **flags: Any) -> str:
    """What a dry run says; it leaves nothing behind."""
    console = quiet()
    before = set(folder.rglob("*"))
    assert train(config(task, folder, dry_run=True, publish="acme/mine", **flags), console) is None
    assert set(folder.rglob("*")) == before
    return said(console)


# ── the dry run ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_shows_rows_and_figures_and_writes_nothing(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    shown = dry("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), epochs=5)
    rows = re.findall(r"^row (\d) \(instructions\.jsonl line \d+, \d+ tokens\)$", shown, re.MULTILINE)
    assert rows == ["1", "2", "3"]
    marked = re.findall(r"⟦(.*?)⟧", shown)
    assert len(marked) == 3
    assert all(re.fullmatch(r"The \w+\.<\|endoftext\|>", text) for text in marked)
    assert shown.count("### Instruction:\nName the ") == 3
    figures = {name.strip(): value.strip() for name, value in re.findall(r"│ ([^│]+)│ ([^│]+)│", shown)}
    assert figures["rows"] == "18 train, 2 validation, 0 test"
    assert figures["steps"] == "15 of 8 rows, 3 an epoch"
    assert re.fullmatch(r"[\d,]+, [\d,]+ of them learned", figures["tokens in an epoch"])
    assert re.match(r"[\d,]+ trained of [\d,]+ ", figures["parameters"])
    assert figures["a step"].endswith("(the second of two taken here)")
    assert re.match(r"about \d+ s on this machine", figures["time"])
    assert re.fullmatch(r"about \d+\.\d GB", figures["memory"])


def test_a_dry_run_for_programs(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    (line,) = dry(
        "instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), epochs=5, json_lines=True
    ).splitlines()
    plan = json.loads(line)
    assert (plan["event"], plan["steps"], plan["rows"]) == ("plan", 15, {"train": 18, "validation": 2, "test": 0})
    assert plan["tokens"] > plan["learned"] > 0
    assert len(plan["shown"]) == 3
    assert all("⟦The " in row["text"] for row in plan["shown"])
    assert plan["seconds"]["steps"] > 0
    assert {"kind", "message", "mend", "places"} <= plan["findings"][0].keys()


def test_findings_are_told_with_their_rows_and_mends(tiny: Tiny, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*INSTRUCTIONS, {"instruction": "a", "output": "long " * 300}])
    shown = dry("instruct", tmp_path, data=data, base=str(tiny("gpt2")))
    assert "warning: 1 row of more than 256 tokens is left out — shorten them: the base reads no more" in shown
    assert f"rows.jsonl line {len(INSTRUCTIONS) + 1}" in shown


def test_a_dry_run_of_the_other_tasks(tiny: Tiny, reviews: Path, pairs: Path, texts: Path, tmp_path: Path) -> None:
    shown = dry("classify", tmp_path, data=reviews, base=str(tiny("bert")))
    assert re.search(r"(good|bad) \w+ ⟦(positive|negative)⟧", shown)
    shown = dry("reward", tmp_path, data=pairs, base=str(tiny("gpt2")))
    assert re.search(r"better: .*### Response:\nThe good bread\.", shown, re.DOTALL)
    assert re.search(r"worse: .*### Response:\nNo bread, bad\.", shown, re.DOTALL)
    shown = dry("text", tmp_path, data=texts, base=str(tiny("gpt2")))
    assert re.search(r"O⟦nce there was \w+\. .*<\|endoftext\|>⟧", shown)


def test_a_conversation_is_shown_whole_with_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    from tests.training.test_encoding import conversations

    task, (example,) = conversations(tmp_path, tiny("llama"), "a b", ("c d", 0.5), "e f", "g h")
    end = task.tokenizer.eos_token
    expected = f"<user>a b<assistant>⟦c d{end}⟧ ×0.5<user>e f<assistant>⟦g h{end}⟧"
    assert rendered(task, example).plain == expected


# ── for programs ──────────────────────────────────────────────────────────────────────────────────────────────


def test_json_lines_are_all_that_stands_on_standard_output(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*INSTRUCTIONS, {"instruction": "[bold]Smile[/] :smile:", "input": "", "output": "[x] :cat:"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", rows[-1:])
    places = flags_of(data=data, validation=held_out, base=tiny("gpt2"), output=tmp_path / "run", answers=1)
    small = flags_of(epochs=1, batch_size=8, rank=2, eval_every=1, answer_tokens=4, dtype="float32", device="cpu")
    lines = Command(tmp_path, "instruct", *places, *small, "--json").finish().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == [
        *("run", "point", "start"),
        *("step", "point", "step", "point", "step", "point", "sample"),
        "results",
    ]
    about, start = events[0], events[2]
    assert about["rows"] == {"train": 21, "validation": 1, "test": 0}
    assert about["output"] == str(tmp_path / "run")
    assert start == {"event": "start", "steps": 3, "steps_in_epoch": 3, "done": 0}
    steps = [event for event in events if event["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[-1].keys() == {"event", "step", "tokens", "loss", "learning_rate", "tokens_per_second"}
    assert events[-2]["prompt"] == "[bold]Smile[/] :smile:"
    assert json.loads(Path(events[-1]["file"]).read_text())["after"]["metrics"] == events[-1]["after"]


def test_tensorboard_gets_its_files(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    results = run("classify", tmp_path, data=reviews, base=str(tiny("gpt2")), tensorboard=True)
    read = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert losses == [(step.step, pytest.approx(step.loss, rel=1e-6)) for step in results.steps]
    accuracies = [(event.step, event.value) for event in read.Scalars("validation/accuracy")]
    assert accuracies[1:] == [(point.step, pytest.approx(point.validation["accuracy"])) for point in results.epochs]


# ── for people ────────────────────────────────────────────────────────────────────────────────────────────────

STEP = Step(step=3, tokens=90, loss=1.5, learning_rate=0.001)
POINT = Point(step=4, epoch=1.0, tokens=120, train_loss=1.25, validation={"loss": 1.5, "exact_match": 0.5})
SAMPLE = Sample(prompt="What is [bold]this[/]?", answer="a [x] :cat:")


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = quiet()
    progress = Shown(console)
    progress.start(total=8, steps=4, done=2)
    progress.step(STEP, 1234.5)
    progress.measured(POINT)
    progress.sample(SAMPLE)
    progress.stop()
    going_on, step, point, sample = said(console).splitlines()
    assert going_on == "going on after step 2 of 8"
    assert re.fullmatch(r"epoch 1/2  step 3/8  loss 1\.500  lr 1\.0e-03  1,23[45] tokens/s  0:00 left", step)
    assert point == "epoch 1: train loss 1.2500  validation loss 1.5000  exact match 0.5000"
    assert sample.strip().startswith("sample: What is [bold]this[/]? → a [x]")


def test_a_bar_on_a_terminal_and_the_last_sample_stays() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    progress = Shown(console)
    progress.start(total=8, steps=4, done=0)
    progress.step(STEP, 1234.5)
    progress.sample(SAMPLE)
    progress.stop()
    progress.stop()
    shown = said(console)
    assert "3/8" in shown
    assert "tokens/s" in shown
    assert "What is [bold]this[/]?" in shown.splitlines()[-1]


def test_json_lines_hold_what_was_said_as_it_was_said() -> None:
    console = Console(file=io.StringIO(), width=40)
    JsonLines(console).sample(SAMPLE)
    assert json.loads(said(console)) == {"event": "sample", **SAMPLE.model_dump()}


# ── where rows come from ──────────────────────────────────────────────────────────────────────────────────────


def test_rows_from_standard_input(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("text", "label"))
        writer.writeheader()
        writer.writerows(REVIEWS)
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        piped = run("classify", tmp_path / "piped", data="-", file_kind="csv", base=str(tiny("bert")), epochs=1)
    named = run("classify", tmp_path / "named", data=file, base=str(tiny("bert")), epochs=1)
    assert (piped.rows, piped.data_sha256) == (named.rows, named.data_sha256)
    assert piped.after.metrics == named.after.metrics


def test_rows_of_a_folder_with_columns_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    theirs = [{"review": row["text"], "mood": row["label"], "id": number} for number, row in enumerate(REVIEWS)]
    write_jsonl(folder / "a.jsonl", theirs[:25])
    (folder / "b.json").write_text(json.dumps(theirs[25:]))
    columns = {"columns": "review=text,mood=label", "ignore_columns": "id"}
    results = run("classify", tmp_path, data=folder, base=str(tiny("bert")), epochs=1, **columns)
    assert results.rows.train + results.rows.validation == len(REVIEWS)
    assert results.recipe["columns"] == {"review": "text", "mood": "label"}


# ── a judge ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_judge_scores_the_answers_before_and_after(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    def reply(prompt: str, _number: int) -> Say:
        return Say("80" if "score" in prompt.lower() else "A")

    flags: dict[str, Any] = {"data": instructions, "base": str(tiny("gpt2")), "answers": 2, "answer_tokens": 4}
    with judge_server(reply) as server:
        results = run("instruct", tmp_path, judge=server.url, judge_model="fair", judge_key="secret", **flags)
    assert results.after.judged is not None
    assert (results.after.judged.mean, results.after.judged.scored) == (80, 2)
    assert [sample.score for sample in results.before.samples] == [80, 80]
    assert results.comparison is not None
    assert results.comparison.wins + results.comparison.ties + results.comparison.losses == 2
    assert results.comparison.win_rate == 0.5  # one who always takes the first has no opinion
    assert server.requests[0]["headers"]["authorization"] == "Bearer secret"
    assert not [file for file in (tmp_path / "run").rglob("*.json") if "secret" in file.read_text()]


def test_a_judge_that_is_away_is_told_before_training(
    tiny: Tiny, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "_pause_after", lambda *_: 0.0)
    with judge_server(lambda _prompt, _number: Say("80")) as server:
        url = server.url
    away: dict[str, Any] = {"data": instructions, "base": str(tiny("gpt2")), "answers": 2, "judge": url}
    with pytest.raises(TrainingError, match=f"the judge at {url} cannot be reached"):
        run("instruct", tmp_path, judge_model="fair", **away)
    assert not (tmp_path / "run").exists()
