"""What a run is made of: one frozen object, from a recipe and flags.

Every field is a flag, an environment variable ``TENORA_<FIELD>`` and a key of a recipe at once; its description is
the help line. ``training.flags`` makes the command line from this file, so nothing is said twice.
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from training.errors import ConfigError

DATA, MODEL, OPTIMISER, EVALUATION, OUTPUT = "Data", "Model and adapter", "Optimiser", "Evaluation", "Where it goes"
# Where a run's files go is not part of how the adapter was made.
_NOT_RECIPE = ("output", "store", "publish")


def _flag(group: str, default: Any, text: str, **limits: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)


class TrainConfig(BaseModel, ABC):
    """What both tasks share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Path | None = _flag(DATA, None, "Training rows: a .jsonl, .json or .csv file.")
    validation: Path | None = _flag(DATA, None, "Validation rows in a file of their own; else a part of the data.")
    test: Path | None = _flag(DATA, None, "Held-out rows for the table at the end; else the validation rows.")
    validation_split: float = _flag(DATA, 0.1, "Share of the data kept for validation.", gt=0, lt=1)
    test_split: float = _flag(DATA, 0.0, "Share of the data kept for the table at the end.", ge=0, lt=1)
    split: Literal["shuffled", "sequential"] = _flag(
        DATA, "shuffled", "Seeded and stratified by label, or in file order: train, test, validation."
    )
    ignore_columns: tuple[str, ...] = _flag(DATA, (), "Columns to pass over, separated by commas.")
    max_length: int = _flag(DATA, 256, "Most tokens in a row.", ge=4)

    base: str = _flag(MODEL, "embedded", "Base model: embedded, minilm, a folder, or a hub id (id@revision).")
    rank: int = _flag(MODEL, 16, "LoRA rank r.", ge=1, le=512)
    alpha: float = _flag(MODEL, 32, "LoRA alpha; the update is scaled by alpha / rank.", gt=0)
    dropout: float = _flag(MODEL, 0.0, "Dropout before the LoRA matrices.", ge=0, lt=1)
    base_dropout: float | None = _flag(MODEL, None, "Dropout in the base while training; else its own.", ge=0, lt=1)
    targets: tuple[str, ...] = _flag(MODEL, ("all-linear",), "Modules to adapt, by the end of their names.")
    dtype: Literal["auto", "float32", "bfloat16"] = _flag(
        MODEL, "float32", "Arithmetic of the forward pass; auto is bfloat16 where the processor has it."
    )
    device: Literal["auto", "cpu", "cuda"] = _flag(MODEL, "auto", "Where to train; auto takes a GPU if there is one.")

    epochs: int = _flag(OPTIMISER, 3, "Passes over the training rows.", ge=1)
    lr: float = _flag(OPTIMISER, 1e-3, "Learning rate of AdamW at its highest.", gt=0)
    batch_size: int = _flag(OPTIMISER, 16, "Rows in a step.", ge=1)
    weight_decay: float = _flag(OPTIMISER, 0.01, "Weight decay of AdamW.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = _flag(OPTIMISER, "linear", "Course of the rate after warm-up.")
    warmup: float = _flag(OPTIMISER, 0.05, "Share of the steps in which the rate rises from zero.", ge=0, lt=1)
    clip: float = _flag(OPTIMISER, 1.0, "Largest norm of the gradient; 0 leaves it alone.", ge=0)
    drop_last: bool = _flag(OPTIMISER, False, "Leave out the last batch of an epoch if it is not full.")
    seed: int = _flag(OPTIMISER, 123, "Seed of the split, the order, the dropout and the new weights.", ge=0)

    metric: str = _flag(EVALUATION, "loss", "Which epoch is best.")
    eval_every: int = _flag(EVALUATION, 0, "Also measure the loss every N steps; 0: after each epoch only.", ge=0)
    eval_batches: int = _flag(EVALUATION, 5, "Batches of train and of validation measured every N steps.", ge=1)
    eval_batch_size: int = _flag(EVALUATION, 32, "Rows in a batch of a whole evaluation.", ge=1)

    publish: str | None = _flag(OUTPUT, None, "Publish the best checkpoint as TENANT/NAME.")
    store: Path = _flag(OUTPUT, Path("store"), "The adapter store.")
    output: Path | None = _flag(OUTPUT, None, "Folder of the run's files; else build/runs/<task>-<time>.")

    @property
    @abstractmethod
    def task(self) -> str:
        """``instruct`` or ``classify``."""

    @field_validator("ignore_columns", "targets", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return comma_list(value)

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.validation_split + self.test_split >= 1:
            raise ValueError("validation_split and test_split together leave no rows to train on")
        if self.test is not None and self.test_split:
            raise ValueError("test and test_split are given: use one of them")
        return self

    def as_recipe(self) -> dict[str, Any]:
        """How the adapter was made, for its manifest: file names without folders, no places of this machine."""
        recipe = self.model_dump(mode="json", exclude=set(_NOT_RECIPE))
        for key in ("data", "validation", "test"):
            recipe[key] = Path(recipe[key]).name if recipe[key] else None
        return {"task": self.task, **recipe}


class InstructConfig(TrainConfig):
    """An adapter that follows instructions: rows of instruction, input (may be missing) and output."""

    template: str = _flag(DATA, "alpaca", "Prompt: alpaca, chat, plain, or the path of a Jinja file.")
    loss: Literal["completion", "all"] = _flag(DATA, "completion", "Tokens that are learned: the answer's, or all.")
    metric: Literal["loss", "exact_match"] = _flag(
        EVALUATION, "loss", "Which epoch is best: by validation loss, or by greedy answers exactly right."
    )
    answers: int = _flag(EVALUATION, 100, "Most rows answered greedily before and after; 0: none.", ge=0)
    answer_tokens: int = _flag(EVALUATION, 64, "Most tokens of a greedy answer.", ge=1)

    @property
    def task(self) -> str:
        """``instruct``."""
        return "instruct"

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if self.metric == "exact_match" and not self.answers:
            raise ValueError("metric exact_match needs answers to count: set answers above 0")
        return self


class ClassifyConfig(TrainConfig):
    """An adapter that sorts texts into classes: rows of text and label."""

    labels: tuple[str, ...] = _flag(DATA, (), "Names of the labels in order, by commas; else those of the data.")
    truncation_side: Literal["left", "right"] = _flag(DATA, "left", "The end that a text too long loses.")
    metric: Literal["accuracy", "loss"] = _flag(
        EVALUATION, "accuracy", "Which epoch is best: by validation accuracy or by validation loss."
    )
    sentences: tuple[str, ...] = _flag(
        EVALUATION, (), "Sentences to classify before and after, with | between them; else five reviews."
    )
    sentence_labels: tuple[str, ...] = _flag(EVALUATION, (), "The right labels of the sentences, in their order.")

    @property
    def task(self) -> str:
        """``classify``."""
        return "classify"

    @field_validator("labels", "sentence_labels", mode="before")
    @classmethod
    def _split_labels(cls, value: Any) -> Any:
        return comma_list(value)

    @field_validator("sentences", mode="before")
    @classmethod
    def _split_bars(cls, value: Any) -> Any:
        return comma_list(value, "|")

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError("labels must be at least two different names")
        if self.sentence_labels and len(self.sentence_labels) != len(self.sentences):
            raise ValueError("sentence_labels must name one label for each of sentences")
        return self


CONFIGS: Mapping[str, type[TrainConfig]] = {"instruct": InstructConfig, "classify": ClassifyConfig}


def comma_list(value: Any, separator: str = ",") -> Any:
    """A flag's one string as the list that a recipe would write."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return value


def make_config(task: str, flags: Mapping[str, Any], recipe: Path | None = None) -> TrainConfig:
    """The run's configuration: ``flags`` (given ones only) over ``recipe`` over the defaults.

    Raises:
        ConfigError: naming every wrong flag and key.
    """
    config = CONFIGS[task]
    from_recipe = read_recipe(recipe, task) if recipe is not None else {}
    try:
        return config.model_validate({**from_recipe, **flags})
    except ValidationError as error:
        raise ConfigError(_explain(error, flags, recipe)) from None


def read_recipe(path: Path, task: str) -> dict[str, Any]:
    """The keys of a TOML recipe; its paths are relative to the file itself."""
    path = find_recipe(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    if values.pop("task", task) != task:
        raise ConfigError(f"{path}: this recipe is for the other command: tenora train {_other(task)} --recipe {path}")
    known = CONFIGS[task].model_fields
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(f"{path}: unknown keys: {', '.join(unknown)}. Known are: {', '.join(known)}")
    for key in ("data", "validation", "test", "store", "output"):
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
    if str(values.get("template", "")).endswith((".jinja", ".jinja2", ".j2")):
        values["template"] = str(path.parent / values["template"])
    return values


def find_recipe(path: Path) -> Path:
    """``path`` itself, or the recipe of that bare name that comes with the package."""
    import sys

    if path.exists() or path.parent != Path():
        return path
    name = path.name if path.suffix else f"{path.name}.toml"
    shipped = [Path(__file__).parent.parent / "recipes", Path(sys.prefix) / "share/tenora/recipes"]
    return next((folder / name for folder in shipped if (folder / name).exists()), path)


def _other(task: str) -> str:
    return next(name for name in CONFIGS if name != task)


def _explain(error: ValidationError, flags: Mapping[str, Any], recipe: Path | None) -> str:
    """Each problem on a line, by the name under which it was given."""
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(message)
            continue
        key = str(problem["loc"][0])
        origin = f"--{key.replace('_', '-')}" if key in flags or recipe is None else f"{recipe}: {key}"
        lines.append(f"{origin}: {message} (given: {problem['input']!r})")
    return "\n".join(lines)
