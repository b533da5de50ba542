"""What a run leaves for people and programs: one object, from which every table, picture and page is made.

`results.json` holds it whole, in the run's folder. `report.json` is the same object cut to a size that travels with
the adapter: fewer steps, fewer and shorter samples. Whoever can read one can read the other.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from adapters.extras import REPORT_FILE
from training.errors import TrainingError

RESULTS_FILE = "results.json"
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "calibration_error", "brier"})
"""Metrics of which less is better; of all others more is."""

_STEPS_CARRIED = 1_000
_POINTS_CARRIED = 1_000
_SAMPLES_CARRIED = 20
_TEXT_CARRIED = 2_000  # characters of a prompt or an answer

_Item = TypeVar("_Item")


class ReportError(TrainingError):
    """There are no results where they were looked for, or they cannot be read."""


def _seven_digits(value: float) -> float:
    return float(f"{value:.7g}")


Figure = Annotated[float, AfterValidator(_seven_digits)]
"""A measured number, kept to seven digits: more would be noise, and what is read equals what was written."""
Figures = dict[str, Figure]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Base(_Frozen):
    """The base model that was trained on."""

    id: str
    revision: str | None = None
    fingerprint: str


class Rows(_Frozen):
    """How many rows each part has."""

    train: Count
    validation: Count
    test: Count


class Parameters(_Frozen):
    """How many numbers were trained, of how many in the model with the adapter."""

    trained: Count
    all: Count


class Best(_Frozen):
    """The measurement that the published weights come from. ``value`` is the validation part's ``metric``."""

    metric: str
    epoch: Figure
    step: Count
    value: Figure


class Point(_Frozen):
    """The state of a run after ``step`` steps.

    ``tokens`` counts what the model has read so far, without padding. ``validation`` is of the whole validation part
    if ``whole``, else of a few batches; it always holds ``loss``.
    """

    step: Count
    epoch: Figure
    tokens: Count
    train_loss: Figure
    validation: Figures
    whole: bool = True
    evaluation_seconds: Figure = 0.0


class Step(_Frozen):
    """One step: ``tokens`` read so far, the loss of its batch, the learning rate that it was taken with."""

    step: Count
    tokens: Count
    loss: Figure
    learning_rate: Figure


class Sample(_Frozen):
    """What the model said to one input. ``right`` is None where nothing is expected; ``score`` is the judge's or the
    reward model's.
    """

    prompt: str
    answer: str
    expected: str | None = None
    right: bool | None = None
    score: Figure | None = None


class LabelScore(_Frozen):
    """One label on the held-out rows; ``support`` is how many rows have it."""

    label: str
    precision: Figure
    recall: Figure
    f1: Figure
    support: Count


class Confusion(_Frozen):
    """``count`` rows of the label ``expected`` were called ``answered``."""

    expected: str
    answered: str
    count: Count


class Decisions(_Frozen):
    """One label of any number: the four cells of its confusion matrix, in rows. Positive is the label being there."""

    label: str
    true_positives: Count
    false_negatives: Count
    false_positives: Count
    true_negatives: Count


class Bin(_Frozen):
    """Answers given with a confidence above ``low`` and up to ``high``: how many, how sure on average, how often right.

    Of any number of labels an answer is one label of one row, its confidence the probability that the label is there,
    and right that it is. ``confidence`` and ``accuracy`` are None where there were none.
    """

    low: Figure
    high: Figure
    count: Count
    confidence: Figure | None
    accuracy: Figure | None


class Calibration(_Frozen):
    """Whether the model is as sure as it is right.

    ``error`` is the expected calibration error: the distance of confidence and accuracy, weighted by the bins' counts.
    ``brier`` is the mean squared distance of the probabilities from the truth, from 0 (best) to 1.
    """

    bins: tuple[Bin, ...]
    error: Figure
    brier: Figure


class ClassReport(_Frozen):
    """A classifier on the held-out rows.

    ``accuracy`` is the share of rows with exactly the right labels (multi-label: the exact match ratio). ``matrix``
    has a row for each expected and a column for each answered label, in the order of ``labels``; it is None for
    multi-label, which has ``decisions`` for each label, and where there are too many labels to carry it.
    ``confusions`` are the commonest mistakes, most first.
    """

    multi_label: bool
    accuracy: Figure
    macro_f1: Figure
    micro_f1: Figure
    labels: tuple[LabelScore, ...]
    matrix: tuple[tuple[Count, ...], ...] | None = None
    confusions: tuple[Confusion, ...] = ()
    decisions: tuple[Decisions, ...] = ()
    calibration: Calibration | None = None


class Judgement(_Frozen):
    """A language model's scores, 0 to 100.

    ``mean`` is over the ``scored`` answers, None if there are none. ``unparsable`` replies were no number from 0 to
    100, ``failed`` requests got no reply; ``problems`` names the first few of both.
    """

    model: str
    scored: Count
    mean: Figure | None
    unparsable: Count = 0
    failed: Count = 0
    problems: tuple[str, ...] = ()


class Comparison(_Frozen):
    """A language model's choice between the answers before and after, asked in both orders.

    A win is one where the answer after was chosen in both orders; where the two disagree it is a tie. Rows without
    two usable replies are ``undecided``, and ``problems`` names the first few.
    """

    model: str
    wins: Count
    ties: Count
    losses: Count
    undecided: Count = 0
    problems: tuple[str, ...] = ()

    @property
    def win_rate(self) -> float | None:
        """Share of decided rows that were won, ties counted half; None if no row was decided."""
        decided = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / decided if decided else None


class Evaluation(_Frozen):
    """A model on held-out rows: figures, some answers, and answers to the sentences of the recipe."""

    part: Literal["test", "validation"]
    rows: Count
    metrics: Figures
    samples: tuple[Sample, ...] = ()
    sentences: tuple[Sample, ...] = ()
    classes: ClassReport | None = None
    judged: Judgement | None = None


class Seconds(_Frozen):
    """Wall time of a run: all of it, and what steps and measurements took of it."""

    total: Figure
    training: Figure
    evaluation: Figure


class Published(_Frozen):
    """Where the adapter went."""

    name: str
    digest: str
    store: str


class Results(_Frozen):
    """A run from its rows to its figures.

    ``baselines`` are what anything should beat, by name: {"majority class": {"accuracy": 0.5}}. ``adapter`` is the
    name of the adapter's folder within the run's. ``tokens_per_second`` counts training only.
    """

    format: Literal[1] = 1
    task: Literal["instruct", "classify", "text", "reward", "dpo"]
    update: Literal["lora", "head", "full"]
    base: Base
    recipe: dict[str, JsonValue]
    rows: Rows
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    data_sha256: str
    parameters: Parameters
    best: Best
    before: Evaluation
    after: Evaluation
    baselines: dict[str, Figures] = {}
    comparison: Comparison | None = None
    history: Annotated[tuple[Point, ...], Field(min_length=1)]
    steps: tuple[Step, ...]
    seconds: Seconds
    tokens_per_second: Figure
    stopped: Literal["finished", "early"]
    precision: str
    device: str
    threads: Count
    tools: dict[str, str]
    created: str
    published: Published | None = None
    adapter: str | None = None

    @property
    def epochs(self) -> tuple[Point, ...]:
        """Points after steps, on the whole validation part."""
        return tuple(point for point in self.history if point.whole and point.step)

    @property
    def best_point(self) -> Point | None:
        """The point that the published weights come from; None if it was thinned out or never listed."""
        return next((point for point in self.history if point.whole and point.step == self.best.step), None)


def abridged(results: Results) -> Results:
    """The same run with at most 1,000 steps and points and 20 samples of at most 2,000 characters a text."""
    whole = [point for point in results.history if point.whole]
    history = _thinned(results.history, _POINTS_CARRIED)
    if len(history) < len(results.history):
        kept = {point.step: point for point in (*history, *_thinned(whole, _POINTS_CARRIED))}
        if results.best_point is not None:
            kept[results.best.step] = results.best_point
        history = tuple(kept[step] for step in sorted(kept))
    return results.model_copy(
        update={
            "before": _short(results.before),
            "after": _short(results.after),
            "history": history,
            "steps": _thinned(results.steps, _STEPS_CARRIED),
        }
    )


def write_results(folder: Path, results: Results) -> Path:
    """Write `results.json`, whole, into a run's folder; returns the file."""
    return _write(folder / RESULTS_FILE, results)


def write_report(folder: Path, results: Results) -> Path:
    """Write `report.json`, abridged, next to an adapter's files; returns the file."""
    return _write(folder / REPORT_FILE, abridged(results))


def read_results(file: Path) -> Results:
    """Read a `results.json` or `report.json`.

    Raises:
        ReportError: there is no such file, or it is none of ours; the field is named.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ReportError(f"{file}: {reason}") from None
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first: Mapping[str, Any] = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ReportError(
            f"{file}: {place}: {first['msg']}; this file was not written by this version of tenora: train again"
        ) from None


def _write(file: Path, results: Results) -> Path:
    file.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return file


def _thinned(items: Sequence[_Item], most: int) -> tuple[_Item, ...]:
    """Every nth of ``items``, the last one among them, so that no more than ``most`` are left."""
    stride = max(1, ceil(len(items) / most))
    return tuple(items[::-1][::stride][::-1])


def _short(evaluation: Evaluation) -> Evaluation:
    return evaluation.model_copy(
        update={
            "samples": tuple(_cut(sample) for sample in evaluation.samples[:_SAMPLES_CARRIED]),
            "sentences": tuple(_cut(sample) for sample in evaluation.sentences[:_SAMPLES_CARRIED]),
        }
    )


def _cut(sample: Sample) -> Sample:
    texts = {name: getattr(sample, name) for name in ("prompt", "answer", "expected")}
    return sample.model_copy(
        update={
            name: f"{text[: _TEXT_CARRIED - 1]}…"
            for name, text in texts.items()
            if text is not None and len(text) > _TEXT_CARRIED
        }
    )
