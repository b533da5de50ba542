"""The model card: a README.md with the front matter that model hubs read, made from the results alone."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from adapters.extras import CARD_FILE
from training.reporting.limits import limits
from training.reporting.recipe import settings
from training.reporting.results import Results, Sample
from training.reporting.words import compared, count, duration, figure, listed, lower_is_better, metric_name, one_line

_PIPELINES = {
    "instruct": "text-generation",
    "text": "text-generation",
    "dpo": "text-generation",
    "classify": "text-classification",
    "reward": "text-classification",
}
_LEARNED = {
    "instruct": "to follow instructions",
    "text": "on plain text",
    "dpo": "on preferences between answers (DPO)",
    "classify": "to classify texts",
    "reward": "to score answers (a reward model)",
}
_UPDATES = {
    "lora": "a LoRA adapter for",
    "head": "a head for",
    "full": "a full fine-tune of",
}
_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "instruct": ("/v1/instruct", {"instruction": "What is to be done.", "input": ""}),
    "text": ("/v1/completions", {"prompt": "A beginning", "max_tokens": 64}),
    "dpo": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "A question."}]}),
    "classify": ("/v1/classify", {"input": ["A text to classify."]}),
    "reward": ("/v1/score", {"items": [{"prompt": "A question.", "answer": "An answer."}]}),
}
_UNNAMED = "TENANT/NAME"
_SAMPLES = 5
_CELL, _LINE = 240, 600  # characters
_MARKUP = re.compile(r"([\\`*_\[\]|<>#~])")


def write_card(folder: Path, results: Results, name: str | None = None, pictures: Sequence[str] = ()) -> Path:
    """Write `README.md` next to an adapter's files; returns the file."""
    file = folder / CARD_FILE
    file.write_text(model_card(results, name, pictures), encoding="utf-8")
    return file


def model_card(results: Results, name: str | None = None, pictures: Sequence[str] = ()) -> str:
    """The card's text.

    Args:
        results: of the run.
        name: under which the adapter is published, tenant/name.
        pictures: file names of pictures next to the card.
    """
    name = name or (results.published.name if results.published else _UNNAMED)
    blocks = [
        f"---\n{_front_matter(results, name)}\n---",
        f"# {name}",
        _what(results),
        "## Results",
        *_figures(results, pictures),
        *_labels(results),
        *_samples(results),
        "## Limits",
        _bullets(_text(line, _LINE) for line in limits(results))
        or "Nothing was found that speaks against these figures.",
        "## How to serve it",
        *_serving(results, name),
        "## How it was trained",
        _training(results),
        _table(("setting", "value"), settings(results.recipe).items()),
        "## Where it comes from",
        _origin(results),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(results: Results, name: str) -> str:
    """The license is left to whoever shares the adapter: nobody else can know it."""
    after = results.after
    evaluated = [
        EvalResult(
            task_type=_PIPELINES[results.task],
            dataset_type="held-out",
            dataset_name=f"held-out rows ({after.part})",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in after.metrics.items()
    ]
    data = ModelCardData(
        base_model=results.base.id,
        library_name="transformers" if results.update == "full" else "peft",
        pipeline_tag=_PIPELINES[results.task],
        tags=["tenora", results.task, results.update],
        metrics=list(after.metrics),
        model_name=name,
        eval_results=evaluated or None,
    )
    return str(data.to_yaml())


def _what(results: Results) -> str:
    parameters = results.parameters
    trained = f"{parameters.trained:,} of {parameters.all:,} parameters ({parameters.trained / parameters.all:.2%})"
    return (
        f"This is {_UPDATES[results.update]} `{results.base.id}`, trained {_LEARNED[results.task]} with Tenora on "
        f"{count(results.rows.train, 'row')}: {trained}. The card is written by the training run from its own "
        f"measurements. It states no license: add one to the front matter before you share it."
    )


def _figures(results: Results, pictures: Sequence[str]) -> list[str]:
    after = results.after
    blocks = [
        f"On {count(after.rows, 'held-out row')} ({after.part}), before training and after:",
        _metrics_table(results),
    ]
    if results.comparison is not None:
        compared_by = results.comparison
        rate = "–" if compared_by.win_rate is None else f"{compared_by.win_rate:.0%}"
        blocks.append(
            f"{_text(compared_by.model)} prefers the answers after training in {count(compared_by.wins, 'row')} and "
            f"those before in {compared_by.losses}; {compared_by.ties} are ties, {compared_by.undecided} undecided "
            f"(win rate {rate}, both orders asked)."
        )
    return [*blocks, *(f"![{Path(picture).stem}]({picture})" for picture in pictures)]


def _metrics_table(results: Results) -> str:
    names = ["", "before", "after", *results.baselines]
    rows = [
        (
            f"{metric_name(metric)}{' (less is better)' if lower_is_better(metric) else ''}",
            figure(before),
            f"**{figure(after)}**",
            *(figure(figures.get(metric)) for figures in results.baselines.values()),
        )
        for metric, before, after in compared(results)
    ]
    return _table(names, rows, escaped=False)


def _labels(results: Results) -> list[str]:
    report = results.after.classes
    if report is None:
        return []
    wrong = {one.label: (f"{one.false_negatives:,}", f"{one.false_positives:,}") for one in report.decisions}
    rows = [
        (one.label, *map(figure, (one.precision, one.recall, one.f1)), f"{one.support:,}", *wrong.get(one.label, ()))
        for one in report.labels
    ]
    names = ("label", "precision", "recall", "F1", "rows", *(("missed", "wrongly given") if wrong else ()))
    blocks = ["### By label", _table(names, rows)]
    if report.confusions:
        commonest = [f"{one.expected} taken for {one.answered} ({one.count})" for one in report.confusions[:3]]
        blocks.append(f"Commonest mistakes: {_text(listed(commonest))}.")
    return blocks


def _samples(results: Results) -> list[str]:
    blocks = []
    for title, before, after in (
        ("Answers", results.before.samples, results.after.samples),
        ("Sentences", results.before.sentences, results.after.sentences),
    ):
        if after:
            rows = [
                (new.prompt, old.answer, _marked(new), new.expected or "")
                for old, new in zip(before, after, strict=False)
            ]
            blocks += [f"### {title}", _table(("input", "before", "after", "expected"), rows[:_SAMPLES])]
    return blocks


def _marked(sample: Sample) -> str:
    mark = {True: " ✓", False: " ✗", None: ""}[sample.right]
    score = "" if sample.score is None else f" ({sample.score:g})"
    return f"{one_line(sample.answer, _CELL - 12)}{mark}{score}"


def _serving(results: Results, name: str) -> list[str]:
    if results.update == "full":
        return ["The weights are a model of their own, served as a base:", _shell("tenora serve --base FOLDER")]
    route, body = _REQUESTS[results.task]
    request = json.dumps({"model": name, **body}, ensure_ascii=False)
    return [
        f"With the base `{results.base.id}` and the store that it was published to:",
        _shell(
            "tenora serve --base BASE --store STORE",
            f"curl -s localhost:8000{route} -H 'content-type: application/json' -d '{request}'",
        ),
    ]


def _training(results: Results) -> str:
    rows, best, seconds = results.rows, results.best, results.seconds
    epochs = f"{results.history[-1].epoch:.3g} epochs ({count(results.history[-1].step, 'step')})"
    early = ", stopped early because it no longer improved" if results.stopped == "early" else ""
    threads = f" ({count(results.threads, 'thread')})" if results.device == "cpu" else ""
    return (
        f"{count(rows.train, 'training row')}, {rows.validation:,} validation, {rows.test:,} test; {epochs}{early}. "
        f"The weights are those after epoch {best.epoch:.3g}, the best by validation {metric_name(best.metric)} "
        f"({figure(best.value)}). It took {duration(seconds.total)} on {results.device}{threads} in "
        f"{results.precision}, {results.tokens_per_second:,.0f} tokens a second while training."
    )


def _origin(results: Results) -> str:
    base = results.base
    revision = f" at revision `{base.revision}`" if base.revision else ""
    tools = ", ".join(f"{name} {version}" for name, version in results.tools.items())
    return _bullets(
        [
            f"Base: `{base.id}`{revision}, fingerprint `{base.fingerprint}`",
            f"Training data: SHA-256 `{results.data_sha256}`",
            f"Made {results.created} with {tools}",
        ]
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, escaped: bool = True) -> str:
    """A Markdown table; cells are flat and, unless they are ours, escaped."""
    lines = [
        "| " + " | ".join(_text(name) for name in names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(_text(cell) if escaped else cell for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _text(text: str, most: int = _CELL) -> str:
    """Somebody's words, shown as they are: nothing in them is markup."""
    return _MARKUP.sub(r"\\\1", one_line(text, most))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _shell(*lines: str) -> str:
    return "\n".join(("```sh", *lines, "```"))
