"""Measure base models against each other: the tables of the card.

    python -m models.measure models/tenora-base build/base/base --held-out build/base/held-out --data DATA

For each base: bits per byte of each held-out text file; what LoRA makes of it, by the recipes of the demo, in
sentiment (the example reviews, and of DATA/sentiment sst2_sent and imdb where DATA is given) and in following
instructions (the example rows by what is new in them, and sentences in frames that training never has); five free
continuations. Figures are kept in --output as they come, so that a second call goes on. Bases read the same bytes,
whatever their tokenizers; texts are cut into the windows that models.pretrain trains on.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.generator.instructions import build_instructions
from examples.generator.rows import InstructionRow
from models.pretrain import CONTEXT, END

ROOT = Path(__file__).resolve().parents[1]
STARTS = [
    "Once upon a time there was a little",
    "The capital city of the country is",
    "User: I would like to book a table for two.\nAssistant:",
    "I really liked this film because",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName three animals that live on a farm.\n\n### Response:\n",
]
# First words that are small inside a sentence; names and "I" are not.
COMMON = {"The", "A", "An", "We", "They", "She", "He", "My", "Our", "Two", "Three"}
# No training row has these around its sentence.
FRAMES = ["As you know, {}.", "In the end, {}.", "I think that {}.", "{}, or so they say."]
NOVELTIES = {"fill": "new objects", "word": "unseen verbs and words", "phrasing": "asked for in an unseen way"}


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Cross-entropy of the texts in bits, per byte of UTF-8; each text begins after an END."""
    nats = 0.0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        for start in range(0, len(ids) - 1, CONTEXT):
            window = torch.tensor(ids[start : start + CONTEXT + 1])
            logits = model(window[None, :-1]).logits[0].float()
            nats += float(functional.cross_entropy(logits, window[1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def free_samples(model: Any, tokenizer: Any) -> list[str]:
    """Continuations of `STARTS`, sampled at temperature 0.7 with a fixed seed."""
    samples = []
    for start in STARTS:
        torch.manual_seed(0)
        ids = tokenizer(start, return_tensors="pt", add_special_tokens=False)
        made = model.generate(**ids, max_new_tokens=50, do_sample=True, temperature=0.7, top_k=50)
        samples.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return samples


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────


def train(base: Path, recipe: str, output: Path, *options: str | Path) -> dict[str, Any]:
    """What a training run reports of itself; a run that is there is not made again."""
    if not (output / "results.json").exists():
        task = "instruct" if "instruct" in recipe else "classify"
        command = [sys.executable, "-m", "service.cli", "train", task, "--recipe", ROOT / "recipes" / f"{recipe}.toml"]
        command += ["--base", base, "--output", output, *options]
        subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def sentiment(base: Path, output: Path, data: Path | None) -> Iterator[tuple[str, float, dict[str, float]]]:
    """(data set, accuracy with LoRA, {baseline: accuracy})."""
    runs: dict[str, list[str | Path]] = {"example reviews": []}
    if data is not None:
        folder = data / "sentiment"
        runs["sst2_sent_dev"] = ["--data", folder / "sst2_sent_train.jsonl", "--test", folder / "sst2_sent_dev.jsonl"]
        runs["sst2_sent_dev"] += ["--epochs", "2", "--ignore-columns", "raw"]
        runs["imdb_validation"] = ["--data", folder / "imdb_train.jsonl", "--test", folder / "imdb_validation.jsonl"]
        runs["imdb_validation"] += ["--epochs", "3", "--max-length", "256"]
    for name, options in runs.items():
        results = train(base, "demo-sentiment", output / name.replace(" ", "-"), *options)
        baselines = {baseline: metrics["accuracy"] for baseline, metrics in results["baselines"].items()}
        yield name, results["after"]["metrics"]["accuracy"], baselines


def in_frames(rows: list[InstructionRow]) -> list[InstructionRow]:
    """The passive rows that stand apart from their instruction, each in two of the frames."""
    plain = [row for row in rows if row.family == "passive" and row.novelty == "fill" and row.input]
    framed = []
    for number, row in enumerate(plain):
        for frame in (FRAMES[number % 4], FRAMES[(number + 1) % 4]):
            given, output = (_framed(frame, text) for text in (row.input, row.output))
            framed.append(InstructionRow(row.instruction, given, output, "passive", row.fill, row.novelty))
    return framed


def _framed(frame: str, sentence: str) -> str:
    bare = sentence.rstrip(".")
    inside = not frame.startswith("{") and bare.split()[0] in COMMON
    return frame.format(bare[0].lower() + bare[1:] if inside else bare)


def instructions(base: Path, output: Path) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """({group of held-out rows: (answers that are exactly right, rows)}, {before, after: loss of what is expected})."""
    rows = build_instructions().heldout
    framed = in_frames(rows)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "questions.jsonl"
    file.write_text("".join(json.dumps(row.record()) + "\n" for row in [*rows, *framed]))
    results = train(base, "demo-instruct", output / "run", "--test", file, "--answers", str(len(rows) + len(framed)))
    groups = [f"passive, {NOVELTIES[row.novelty]}" if row.family == "passive" else row.family for row in rows]
    groups += ["passive, unseen sentence frames"] * len(framed)
    right: dict[str, list[bool]] = defaultdict(list)
    for group, row, sample in zip(groups, [*rows, *framed], results["after"]["samples"], strict=True):
        assert sample["expected"] == row.output, "samples come in the order of the rows"
        right[group].append(sample["right"])
    counts = {group: (sum(marks), len(marks)) for group, marks in sorted(right.items())}
    return counts, {when: results[when]["metrics"]["loss"] for when in ("before", "after")}


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────


def measure(base: Path, output: Path, held_out: Path, data: Path | None) -> dict[str, Any]:
    """All figures of one base."""
    kept = output / "figures.json"
    if kept.exists():
        figures: dict[str, Any] = json.loads(kept.read_text())
        return figures
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = {file.stem: file.read_text().split(f"\n{END}\n") for file in sorted(held_out.glob("*.txt"))}
    if data is not None:
        lines = (data / "sentiment" / "imdb_validation.jsonl").read_text().splitlines()[:200]
        texts["imdb_validation (never trained on)"] = [json.loads(line)["text"] for line in lines]
    right, losses = instructions(base, output / "instructions")
    figures = {
        "bits_per_byte": {name: bits_per_byte(model, tokenizer, part) for name, part in texts.items()},
        "samples": free_samples(model, tokenizer),
        "sentiment": {name: (lora, others) for name, lora, others in sentiment(base, output, data)},
        "instructions": right,
        "losses": losses,
    }
    kept.write_text(json.dumps(figures, indent=2))
    return figures


def table(measured: dict[str, dict[str, Any]]) -> str:
    """One Markdown table, a column for each base."""
    first = next(iter(measured.values()))
    lines = [f"| | {' | '.join(measured)} |", f"|---|{'---:|' * len(measured)}"]
    lines += [
        _line(f"bits per byte, {name}", [f"{one['bits_per_byte'][name]:.3f}" for one in measured.values()])
        for name in first["bits_per_byte"]
    ]
    for name, (_, others) in first["sentiment"].items():
        beside = ", ".join(f"{other} {value:.3f}" for other, value in others.items())
        values = [f"{one['sentiment'][name][0]:.3f}" for one in measured.values()]
        lines.append(_line(f"accuracy with LoRA, {name} ({beside})", values))
    for name, when in (("before LoRA", "before"), ("with LoRA", "after")):
        values = [f"{one['losses'][when]:.3f}" for one in measured.values()]
        lines.append(_line(f"loss of the expected answers, {name}", values))
    for name in first["instructions"]:
        values = ["{} of {}".format(*one["instructions"][name]) for one in measured.values()]
        lines.append(_line(f"exactly right with LoRA, {name}", values))
    sums = [[sum(column) for column in zip(*one["instructions"].values(), strict=True)] for one in measured.values()]
    lines.append(_line("exactly right with LoRA, all of these", [f"{right} of {rows}" for right, rows in sums]))
    return "\n".join(lines)


def _line(name: str, values: list[str]) -> str:
    return f"| {name} | {' | '.join(values)} |"


def main() -> None:
    """Measure every base named, then print the table and the samples."""
    parser = argparse.ArgumentParser(
        prog="python -m models.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", type=Path, nargs="+", help="model folders")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of *.txt, as models.pretrain leaves it")
    parser.add_argument("--data", type=Path, help="folder with sentiment/sst2_sent_*.jsonl and imdb_*.jsonl")
    parser.add_argument("--output", type=Path, default=Path("build/measure"))
    args = parser.parse_args()
    measured = {}
    for number, base in enumerate(args.bases, start=1):
        name = base.name if base.name not in measured else f"{base.name} ({number})"
        folder = (args.output / f"{number}-{base.name}").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        measured[name] = measure(base.resolve(), folder, args.held_out, args.data and args.data.resolve())
    print(table(measured))
    for name, figures in measured.items():
        print(f"\n{name}:")
        for start, sample in zip(STARTS, figures["samples"], strict=True):
            print(f"- {start!r} -> {sample!r}")


if __name__ == "__main__":
    main()
