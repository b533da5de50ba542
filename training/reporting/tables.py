"""What a run tells on a terminal, made from its results."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from training.reporting.limits import limits
from training.reporting.recipe import settings
from training.reporting.results import ClassReport, Evaluation, Judgement, Results, Sample
from training.reporting.words import compared, count, duration, figure, listed, lower_is_better, metric_name, one_line

_SAMPLES_SHOWN = 3
_TEXT_SHOWN = 160  # characters
_MATRIX_SHOWN = 10  # labels; a wider one does not fit a terminal
_LABELS_SHOWN = 40
_CONFUSIONS_SHOWN = 10
_NAME_SHOWN = 24  # characters
_MARKS = {True: "[green]right[/]", False: "[red]wrong[/]"}


def show_results(console: Console, results: Results) -> None:
    """Everything at the end of a run: figures, labels, confusions, answers, the judge, and what to keep in mind."""
    console.print(metrics_table(results))
    if results.after.classes is not None:
        show_classes(console, results.after.classes)
    show_samples(console, results)
    show_judge(console, results)
    best = results.best
    metric = metric_name(best.metric)
    console.print(f"best epoch by validation {metric}: {best.epoch:.3g} (step {best.step}, {figure(best.value)})")
    show_limits(console, results)


def show_report(console: Console, results: Results, title: str) -> None:
    """What the card says: where the adapter comes from, how it was trained, and all figures."""
    console.print(facts_table(results, title))
    show_results(console, results)


def metrics_table(results: Results) -> Table:
    """Every metric before and after, beside the baselines."""
    after = results.after
    table = _table(f"{count(after.rows, 'held-out row')} ({after.part})")
    table.add_column("")
    for name in ("before", "after", *results.baselines):
        table.add_column(name, justify="right")
    for metric, old, new in compared(results):
        others = [figure(figures.get(metric)) for figures in results.baselines.values()]
        table.add_row(metric_name(metric), figure(old), _coloured(metric, old, new), *others)
    return table


def labels_table(report: ClassReport) -> Table:
    """Precision, recall, F1 and rows of each label; of very many, those that most rows have."""
    shown = sorted(report.labels, key=lambda one: -one.support)[:_LABELS_SHOWN]
    left_out = len(report.labels) - len(shown)
    table = _table("by label" + (f" (the {len(shown)} with most rows of {len(report.labels)})" if left_out else ""))
    table.add_column("label")
    wrong = {one.label: (f"{one.false_negatives:,}", f"{one.false_positives:,}") for one in report.decisions}
    for name in ("precision", "recall", "F1", "rows", *(("missed", "wrongly given") if wrong else ())):
        table.add_column(name, justify="right")
    for one in shown if left_out else report.labels:
        figures = (figure(one.precision), figure(one.recall), figure(one.f1))
        name = escape(one_line(one.label, _NAME_SHOWN))
        table.add_row(name, *figures, f"{one.support:,}", *wrong.get(one.label, ()))
    return table


def confusion_table(report: ClassReport) -> Table | None:
    """The matrix of few labels, the commonest mistakes of many; None if there are no mistakes to show."""
    if report.matrix is not None and len(report.labels) <= _MATRIX_SHOWN:
        return _matrix_table(report, report.matrix)
    if not report.confusions:
        return None
    table = _table("commonest mistakes")
    for name in ("expected", "answered"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    for one in report.confusions[:_CONFUSIONS_SHOWN]:
        names = (one_line(name, _NAME_SHOWN) for name in (one.expected, one.answered))
        table.add_row(*map(escape, names), f"{one.count:,}")
    return table


def samples_table(title: str, before: Sequence[Sample], after: Sequence[Sample]) -> Table:
    """The same inputs answered before and after, side by side."""
    table = _table(title, lines=True)
    stated = any(sample.expected is not None for sample in after)
    for name in ("input", "before", "after", *(["expected"] if stated else [])):
        table.add_column(name, overflow="fold")
    for old, new in zip(before, after, strict=True):
        expected = [_shown(new.expected or "")] if stated else []
        table.add_row(_shown(new.prompt), _marked(old), _marked(new), *expected)
    return table


def facts_table(results: Results, title: str) -> Table:
    """Where an adapter comes from and how it was trained."""
    base, parameters, seconds, rows = results.base, results.parameters, results.seconds, results.rows
    share = parameters.trained / parameters.all
    facts = {
        "task": f"{results.task}, {results.update}",
        "base": f"{base.id}{f'@{base.revision}' if base.revision else ''} ({base.fingerprint[:12]})",
        "rows": f"{rows.train:,} training, {rows.validation:,} validation, {rows.test:,} test",
        "data hash": f"sha256 {results.data_sha256[:12]}",
        "trained": f"{parameters.trained:,} of {parameters.all:,} parameters ({share:.2%})",
        "took": f"{duration(seconds.total)}, {results.tokens_per_second:,.0f} tokens a second, {results.device}, "
        f"{results.precision}, {count(results.threads, 'thread')}" + (", stopped early" * (results.stopped == "early")),
        "made": f"{results.created}, {listed([f'{name} {version}' for name, version in results.tools.items()])}",
        **settings(results.recipe),
    }
    table = _table(title, header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, escape(fact))
    return table


def show_classes(console: Console, report: ClassReport) -> None:
    """The labels' table and their confusions."""
    console.print(labels_table(report))
    confusions = confusion_table(report)
    if confusions is not None:
        console.print(confusions)


def show_samples(console: Console, results: Results) -> None:
    """The sentences of the recipe, and some answers where answers are more than a label."""
    before, after = results.before, results.after
    if after.sentences:
        console.print(samples_table("sentences", before.sentences, after.sentences))
    if after.samples and after.classes is None:
        shown = slice(_SAMPLES_SHOWN)
        console.print(samples_table("sample answers", before.samples[shown], after.samples[shown]))


def show_judge(console: Console, results: Results) -> None:
    """The judge's means before and after, and its choices, with what it failed to say."""
    for name, evaluation in (("before", results.before), ("after", results.after)):
        if evaluation.judged is not None:
            console.print(escape(f"judge {name}: {_judged(evaluation.judged, evaluation)}"))
    comparison = results.comparison
    if comparison is not None:
        rate = "–" if comparison.win_rate is None else f"{comparison.win_rate:.0%}"
        console.print(
            f"judge, after against before: {comparison.wins} won, {comparison.ties} tied, {comparison.losses} lost, "
            f"{comparison.undecided} undecided (win rate {rate})"
        )
    problems = [result.problems for result in (results.before.judged, results.after.judged, comparison) if result]
    for problem in dict.fromkeys(problem for some in problems for problem in some):
        console.print(f"  {escape(problem)}", style="dim", soft_wrap=True)


def show_limits(console: Console, results: Results) -> None:
    """What to keep in mind about the figures, a line each."""
    for line in limits(results):
        console.print(f"note: {escape(line)}", soft_wrap=True)


def _table(title: str, *, lines: bool = False, header: bool = True) -> Table:
    # Text wraps where its table is narrower; a title does not.
    return Table(title=Text(title, no_wrap=True), title_justify="left", show_lines=lines, show_header=header)


def _coloured(metric: str, before: float | None, after: float | None) -> str:
    """The value after, green if it is the better one and red if the worse."""
    if before is None or after is None or before == after:
        return figure(after)
    better = (after < before) == lower_is_better(metric)
    return f"[{'green' if better else 'red'}]{figure(after)}[/]"


def _matrix_table(report: ClassReport, matrix: Sequence[Sequence[int]]) -> Table:
    table = _table("expected ↓ answered →")
    table.add_column("")
    names = [escape(one_line(one.label, _NAME_SHOWN)) for one in report.labels]
    for name in names:
        table.add_column(name, justify="right")
    for place, (name, row) in enumerate(zip(names, matrix, strict=True)):
        cells = [f"{cell:,}" if cell else "·" for cell in row]
        cells[place] = f"[bold]{cells[place]}[/]"
        table.add_row(name, *cells)
    return table


def _marked(sample: Sample) -> str:
    mark = _MARKS[sample.right] if sample.right is not None else ""
    score = "" if sample.score is None else f"score {sample.score:g}"
    last = " ".join(filter(None, (mark, score)))
    return f"{_shown(sample.answer)}\n{last}" if last else _shown(sample.answer)


def _shown(text: str) -> str:
    return escape(one_line(text, _TEXT_SHOWN))


def _judged(judged: Judgement, evaluation: Evaluation) -> str:
    return (
        f"{figure(judged.mean)} of 100 by {judged.model}, {judged.scored} of {len(evaluation.samples)} answers scored, "
        f"{judged.unparsable} replies unparsable, {judged.failed} requests failed"
    )
