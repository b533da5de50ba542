"""How figures and texts are written, the same in tables, pictures and pages."""

from collections.abc import Sequence

from training.reporting.results import LOWER_IS_BETTER, Results

_SHARES = frozenset(
    {
        "accuracy",
        "exact_match",
        "macro_f1",
        "micro_f1",
        "token_accuracy",
        "pair_accuracy",
        "calibration_error",
        "brier",
    }
)
_SHORT = {"macro_f1": "macro F1", "micro_f1": "micro F1", "brier": "Brier score"}
_JUDGE = "judge_score"
_WIDE = 10_000.0

BEFORE, AFTER = "before", "after"


def metric_name(metric: str) -> str:
    """``macro_f1`` as people write it."""
    return _SHORT.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    return metric in _SHARES


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in LOWER_IS_BETTER


def figure(value: float | None) -> str:
    """A measured value with three decimals, fewer where it is large; a dash for none."""
    if value is None:
        return "–"
    if abs(value) >= _WIDE:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """``1 h 12 min``, ``3 min 5 s`` or ``42 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def one_line(text: str, most: int) -> str:
    """``text`` on one line of at most ``most`` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def compared(results: Results) -> list[tuple[str, float | None, float | None]]:
    """(metric, before, after) of everything that was measured, the judge's mean score at the end."""
    before, after = results.before, results.after
    names = list(dict.fromkeys([*after.metrics, *before.metrics]))
    rows: list[tuple[str, float | None, float | None]] = [
        (name, before.metrics.get(name), after.metrics.get(name)) for name in names
    ]
    judged = [evaluation.judged.mean if evaluation.judged else None for evaluation in (before, after)]
    return [*rows, (_JUDGE, judged[0], judged[1])] if any(mean is not None for mean in judged) else rows


def count(number: int, what: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
