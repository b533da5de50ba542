"""What a reader must know before believing a run's figures, one sentence each."""

from training.evaluation.overfitting import overfitting
from training.reporting.results import Judgement, Results
from training.reporting.words import count, figure, lower_is_better, metric_name

_SURE = 1.96  # standard errors on each side, for 95%
_MOST_SPREAD = 0.5  # the standard deviation of a share of one half, the largest there is


def limits(results: Results) -> list[str]:
    """What was found in the data, what was cut, and what the figures do not show."""
    found = [
        _same_part(results),
        _uncertainty(results),
        *_not_better(results),
        *_lost_to_baselines(results),
        overfitting(results.history),
        _unjudged(results.before.judged, "before"),
        _unjudged(results.after.judged, "after"),
        *(_sentence(text) for text in (*results.findings, *results.notes)),
    ]
    return [text for text in found if text is not None]


def _same_part(results: Results) -> str | None:
    if results.after.part != "validation":
        return None
    return "The held-out rows are the validation rows, which also chose the epoch: on new rows expect a little less."


def _uncertainty(results: Results) -> str | None:
    """How far a share measured on these rows may be off, at most."""
    if results.after.classes is None or not results.after.rows:
        return None
    off = _SURE * _MOST_SPREAD / results.after.rows**0.5
    return f"Shares measured on {count(results.after.rows, 'row')} are uncertain by up to ±{off:.3f} (95%)."


def _not_better(results: Results) -> list[str]:
    """The metric that chose the epoch, if training did not improve it."""
    metric = results.best.metric
    before, after = (evaluation.metrics.get(metric) for evaluation in (results.before, results.after))
    if before is None or after is None or _is_better(metric, after, before):
        return []
    return [f"Training did not improve {metric_name(metric)}: {figure(before)} before, {figure(after)} after."]


def _lost_to_baselines(results: Results) -> list[str]:
    return [
        f"{name[:1].upper()}{name[1:]} reaches {metric_name(metric)} {figure(value)}; the trained model has "
        f"{figure(results.after.metrics[metric])}, which is no better."
        for name, figures in results.baselines.items()
        for metric, value in figures.items()
        if metric in results.after.metrics and not _is_better(metric, results.after.metrics[metric], value)
    ]


def _unjudged(judged: Judgement | None, when: str) -> str | None:
    if judged is None or not judged.unparsable + judged.failed:
        return None
    return (
        f"The judge's mean {when} is over {count(judged.scored, 'answer')}: {judged.unparsable} of its replies were no "
        f"score, {judged.failed} requests failed."
    )


def _is_better(metric: str, value: float, other: float) -> bool:
    return value < other if lower_is_better(metric) else value > other


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
