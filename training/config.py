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
from pydantic.fields import FieldInfo

from training.errors import ConfigError

DATA, MODEL, OPTIMISER = "Data", "Model and adapter", "Optimiser"
EVALUATION, SPEED, OUTPUT = "Evaluation", "Speed", "Where it goes"
# Where a run's files go, and what is shown of it, is not part of how the adapter was made.
_NOT_RECIPE = frozenset(
    {"output", "store", "publish", "resume", "dry_run", "json_lines", "tensorboard", "judge", "judge_key"}
)
MAX_LENGTH = 256
"""Most tokens in a row, unless said otherwise."""
PUBLISHED = "published"
"""A recipe's table of figures that others published: no part of a configuration, see ``training.published``."""
TaskName = Literal["instruct", "classify", "text", "reward", "dpo"]
DataKind = Literal["instruct", "classify", "text", "preference"]


def _flag(group: str, default: Any, text: str, *, flag: str = "", **limits: Any) -> Any:
    """A field with its help line; ``flag`` where the command line calls it otherwise than its name."""
    return Field(default, description=text, json_schema_extra={"group": group, "flag": flag}, **limits)


class TrainConfig(BaseModel, ABC):
    """What all tasks share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Path | None = _flag(DATA, None, "Training rows: a file, a folder of them, or - for standard input.")
    validation: Path | None = _flag(DATA, None, "Validation rows of their own; else a part of the data.")
    test: Path | None = _flag(DATA, None, "Held-out rows for the table at the end; else the validation rows.")
    validation_split: float = _flag(DATA, 0.1, "Share of the data kept for validation.", gt=0, lt=1)
    test_split: float = _flag(DATA, 0.0, "Share of the data kept for the table at the end.", ge=0, lt=1)
    split: Literal["shuffled", "sequential"] = _flag(
        DATA, "shuffled", "Seeded and stratified by label, or in file order: train, test, validation."
    )
    file_kind: Literal["jsonl", "json", "csv", "parquet", "txt"] | None = _flag(
        DATA, None, "What standard input and files of unknown suffix hold.", flag="--format"
    )
    columns: dict[str, str] = _flag(DATA, {}, "Columns that are named otherwise, as THEIRS=OURS, by commas.")
    ignore_columns: tuple[str, ...] = _flag(DATA, (), "Columns to pass over, separated by commas.")
    max_length: int = _flag(DATA, MAX_LENGTH, "Most tokens in a row.", ge=4)

    base: str = _flag(MODEL, "embedded", "Base model: embedded, minilm, a folder, or a hub id (id@revision).")
    update: Literal["lora", "head", "full"] = _flag(
        MODEL, "lora", "What is trained: LoRA matrices (and a head), the head alone, or all weights (a new base)."
    )
    rank: int = _flag(MODEL, 16, "LoRA rank r.", ge=1, le=512)
    alpha: float = _flag(MODEL, 32, "LoRA alpha; the update is scaled by alpha / rank.", gt=0)
    rslora: bool = _flag(MODEL, False, "Scale by alpha / √rank instead.")
    rank_pattern: dict[str, int] = _flag(MODEL, {}, "Ranks of some modules, as MODULE=RANK, by commas.")
    alpha_pattern: dict[str, float] = _flag(MODEL, {}, "Alphas of some modules, as MODULE=ALPHA, by commas.")
    dropout: float = _flag(MODEL, 0.0, "Dropout before the LoRA matrices.", ge=0, lt=1)
    base_dropout: float | None = _flag(MODEL, None, "Dropout in the base while training; else its own.", ge=0, lt=1)
    targets: tuple[str, ...] = _flag(MODEL, ("all-linear",), "Modules to adapt, by the end of their names.")
    dtype: Literal["auto", "float32", "bfloat16"] = _flag(
        MODEL, "auto", "Arithmetic of the products; auto measures whether bfloat16 is faster here."
    )
    device: Literal["auto", "cpu", "cuda"] = _flag(MODEL, "auto", "Where to train; auto takes a GPU if there is one.")

    epochs: int = _flag(OPTIMISER, 3, "Passes over the training rows.", ge=1)
    lr: float = _flag(OPTIMISER, 1e-3, "Learning rate of AdamW at its highest.", gt=0)
    lora_plus: float = _flag(OPTIMISER, 1.0, "LoRA+: how many times faster the B matrices learn.", ge=1)
    batch_size: int = _flag(OPTIMISER, 16, "Rows computed at once.", ge=1)
    accumulate: int = _flag(OPTIMISER, 1, "Batches in a step: a step has batch-size × accumulate rows.", ge=1)
    weight_decay: float = _flag(OPTIMISER, 0.01, "Weight decay of AdamW.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = _flag(OPTIMISER, "linear", "Course of the rate after warm-up.")
    warmup: float = _flag(OPTIMISER, 0.05, "Share of the steps in which the rate rises from zero.", ge=0, lt=1)
    clip: float = _flag(OPTIMISER, 1.0, "Largest norm of the gradient; 0 leaves it alone.", ge=0)
    drop_last: bool = _flag(OPTIMISER, False, "Leave out the last step of an epoch if it is not full.")
    seed: int = _flag(OPTIMISER, 123, "Seed of the split, the order, the dropout and the new weights.", ge=0)

    metric: str = _flag(EVALUATION, "loss", "Which epoch is best.")
    patience: int = _flag(EVALUATION, 0, "Stop after so many epochs that are no better; 0: never.", ge=0)
    eval_every: int = _flag(EVALUATION, 0, "Also measure the loss every N steps; 0: after each epoch only.", ge=0)
    eval_batches: int = _flag(EVALUATION, 5, "Batches measured every N steps.", ge=1)
    train_curve: Literal["steps", "batches"] = _flag(
        EVALUATION, "steps", "Training loss of a point: the mean of the steps since the last, or of batches anew."
    )
    eval_batch_size: int = _flag(EVALUATION, 64, "Rows in a batch of an evaluation.", ge=1)

    packing: bool = _flag(SPEED, True, "Lay rows end to end instead of padding them.")
    share_prefix: bool = _flag(SPEED, True, "Compute what rows of a batch begin with alike once.")
    loss_rows: bool = _flag(SPEED, True, "Compute logits only where something is learned.")
    narrow: bool = _flag(SPEED, True, "Compute the last layer's second half only for tokens that are read.")
    fused: bool = _flag(SPEED, True, "Compute a linear layer and its LoRA matrices as one step.")
    compiled: bool = _flag(SPEED, True, "Take the compiled kernels in bfloat16 on a CPU.")
    prepack: bool = _flag(
        SPEED, True, "Lay frozen weights out for both of their products once; takes the base's memory again."
    )
    onednn: bool = _flag(SPEED, True, "Take oneDNN for float32 products on a CPU where it is as exact and no slower.")
    coarse_curve: bool = _flag(
        SPEED, True, "Measure the loss between epochs in bfloat16 where that is faster; epochs as they are trained."
    )

    publish: str | None = _flag(OUTPUT, None, "Publish the best checkpoint as TENANT/NAME.")
    store: Path = _flag(OUTPUT, Path("store"), "The adapter store.")
    output: Path | None = _flag(OUTPUT, None, "Folder of the run's files; else build/runs/<task>-<time>.")
    save_every: int = _flag(OUTPUT, 0, "Also save every N steps what is needed to resume; 0: after each epoch.", ge=0)
    resume: bool = _flag(OUTPUT, False, "Go on with the run in --output where it was last saved.")
    dry_run: bool = _flag(OUTPUT, False, "Show what would be learned, and how long it would take; train nothing.")
    json_lines: bool = _flag(OUTPUT, False, "Tell of the run as JSON lines on standard output.", flag="--json")
    tensorboard: bool = _flag(OUTPUT, False, "Write TensorBoard's event files into the run's folder as well.")

    @property
    @abstractmethod
    def task(self) -> TaskName:
        """What it is called on the command line."""

    @property
    def data_kind(self) -> DataKind:
        """Which rows it learns from."""
        match self.task:
            case "reward" | "dpo":
                return "preference"
            case "instruct" | "classify" | "text" as same:
                return same

    @property
    def has_head(self) -> bool:
        """Whether it trains a head on top of the base."""
        return self.task in {"classify", "reward"}

    @property
    def step_rows(self) -> int:
        """Rows in a step, over all processes."""
        return self.batch_size * self.accumulate

    @field_validator("columns", "rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _split_pairs(cls, value: Any) -> Any:
        return pairs(value)

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

    @model_validator(mode="after")
    def _check_update(self) -> Self:
        if self.update == "head" and not self.has_head:
            raise ValueError(f"update head needs a head to train, and {self.task} has none: use lora or full")
        if self.update == "full" and self.has_head:
            raise ValueError(f"update full is for instruct and text: {self.task} trains lora or its head")
        if self.update == "full" and self.publish is not None:
            raise ValueError("update full makes a base, which is no adapter and is not published: leave out publish")
        return self

    @model_validator(mode="after")
    def _check_levers(self) -> Self:
        if self.resume and self.output is None:
            raise ValueError("resume needs the folder of the run that goes on: give output")
        return self

    def as_recipe(self) -> dict[str, Any]:
        """How the adapter was made, for its manifest: file names without folders, no places of this machine."""
        recipe = self.model_dump(mode="json", exclude=set(_NOT_RECIPE))
        for key in ("data", "validation", "test"):
            recipe[key] = Path(recipe[key]).name if recipe[key] else None
        for key in ("base", "template"):
            if key in recipe and Path(recipe[key]).exists():
                recipe[key] = Path(recipe[key]).name
        return {"task": self.task, **recipe}


class PromptedConfig(TrainConfig, ABC):
    """A task whose rows are rendered as prompts."""

    template: str = _flag(DATA, "alpaca", "Prompt: alpaca, chat, plain, or the path of a Jinja file.")


class AnsweringConfig(TrainConfig, ABC):
    """A task whose adapter writes, and may be judged by what it writes."""

    answers: int = _flag(EVALUATION, 100, "Most rows answered greedily before and after; 0: none.", ge=0)
    answer_tokens: int = _flag(EVALUATION, 64, "Most tokens of a greedy answer.", ge=1)
    judge: str | None = _flag(EVALUATION, None, "URL of an OpenAI-compatible API that scores the answers, 0 to 100.")
    judge_model: str = _flag(EVALUATION, "", "The judge's model.")
    judge_key: str | None = _flag(EVALUATION, None, "The judge's API key.", repr=False)

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.judge is not None and not self.judge_model:
            raise ValueError("judge needs the name of a model: set judge_model")
        if self.judge is not None and not self.answers:
            raise ValueError("judge needs answers to score: set answers above 0")
        return self


class InstructConfig(PromptedConfig, AnsweringConfig):
    """An adapter that follows instructions: rows of instruction, input (may be missing) and output, or messages."""

    loss: Literal["completion", "all"] = _flag(DATA, "completion", "Tokens that are learned: the answers', or all.")
    metric: Literal["loss", "exact_match"] = _flag(
        EVALUATION, "loss", "Which epoch is best: by validation loss, or by greedy answers exactly right."
    )

    @property
    def task(self) -> TaskName:
        """``instruct``."""
        return "instruct"

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if self.metric == "exact_match" and not self.answers:
            raise ValueError("metric exact_match needs answers to count: set answers above 0")
        return self


class ClassifyConfig(TrainConfig):
    """An adapter that sorts texts into classes: rows of text and label, or of text and labels."""

    labels: tuple[str, ...] = _flag(DATA, (), "Names of the labels in order, by commas; else those of the data.")
    truncation_side: Literal["left", "right"] = _flag(DATA, "left", "The end that a text too long loses.")
    class_weights: Literal["none", "balanced"] = _flag(
        OPTIMISER,
        "none",
        "Whether rows of rare labels count more, so that all labels (of several: having each and not) count the same.",
    )
    metric: Literal["accuracy", "macro_f1", "loss"] = _flag(
        EVALUATION, "accuracy", "Which epoch is best: by validation accuracy, macro F1 or loss."
    )
    sentences: tuple[str, ...] = _flag(
        EVALUATION, (), "Sentences to classify before and after, with | between them; else five reviews."
    )
    sentence_labels: tuple[str, ...] = _flag(EVALUATION, (), "The right labels of the sentences, in their order.")

    @property
    def task(self) -> TaskName:
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
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be different names")
        if self.sentence_labels and len(self.sentence_labels) != len(self.sentences):
            raise ValueError("sentence_labels must name one label for each of sentences")
        return self


class TextConfig(AnsweringConfig):
    """An adapter that has read texts as they stand: rows of text, or files of it."""

    metric: Literal["loss"] = _flag(EVALUATION, "loss", "Which epoch is best: by validation loss.")
    answers: int = _flag(EVALUATION, 3, "Texts whose beginning is continued before and after; 0: none.", ge=0)

    @property
    def task(self) -> TaskName:
        """``text``."""
        return "text"


class RewardConfig(PromptedConfig):
    """An adapter that scores answers: rows of a prompt, a better (chosen) and a worse (rejected) answer."""

    metric: Literal["pair_accuracy", "loss"] = _flag(
        EVALUATION, "pair_accuracy", "Which epoch is best: by pairs in the right order, or by loss."
    )

    @property
    def task(self) -> TaskName:
        """``reward``."""
        return "reward"


class DpoConfig(PromptedConfig, AnsweringConfig):
    """An adapter that prefers better answers: rows of a prompt, a better (chosen) and a worse (rejected) answer."""

    beta: float = _flag(OPTIMISER, 0.1, "How strongly the adapter is held to its base; larger changes less.", gt=0)
    metric: Literal["pair_accuracy", "loss"] = _flag(
        EVALUATION, "pair_accuracy", "Which epoch is best: by pairs in the right order, or by loss."
    )
    base_dropout: float | None = _flag(MODEL, 0.0, "Dropout in the base while training.", ge=0, lt=1)
    fused: bool = _flag(SPEED, False, "Not for dpo: TRL computes its steps with PEFT's own layers.")

    @property
    def task(self) -> TaskName:
        """``dpo``."""
        return "dpo"

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.update != "lora":
            raise ValueError("dpo trains lora: what it is held to is the base without the adapter")
        if self.fused:
            raise ValueError("fused is not for dpo, whose steps TRL computes with PEFT's own layers: leave it out")
        return self


CONFIGS: Mapping[str, type[TrainConfig]] = {
    "instruct": InstructConfig,
    "classify": ClassifyConfig,
    "text": TextConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
}


def pairs(value: Any) -> Any:
    """A flag's ``a=1,b=2`` as the table that a recipe would write."""
    if not isinstance(value, str):
        return value
    split = [part.partition("=") for part in comma_list(value)]
    if bad := [left for left, equals, right in split if not (left.strip() and equals and right.strip())]:
        raise ValueError(f"{', '.join(bad)}: write NAME=VALUE, several separated by commas")
    return {left.strip(): right.strip() for left, _, right in split}


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
        raise ConfigError(_explain(error, task, flags, recipe)) from None


def read_recipe(path: Path, task: str) -> dict[str, Any]:
    """The keys of a TOML recipe; its paths are relative to the file itself."""
    path = find_recipe(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    if (given := values.pop("task", task)) != task:
        raise ConfigError(f"{path}: this recipe is for another command: tenora train {given} --recipe {path}")
    values.pop(PUBLISHED, None)
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


def flag_of(name: str, field: FieldInfo | None) -> str:
    """What a field is called on the command line."""
    extra = field.json_schema_extra if field is not None else None
    given = extra.get("flag") if isinstance(extra, dict) else None
    return str(given or f"--{name.replace('_', '-')}")


def _explain(error: ValidationError, task: str, flags: Mapping[str, Any], recipe: Path | None) -> str:
    """Each problem on a line, by the name under which it was given."""
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(message)
            continue
        key = str(problem["loc"][0])
        field = CONFIGS[task].model_fields.get(key)
        origin = flag_of(key, field) if key in flags or recipe is None else f"{recipe}: {key}"
        lines.append(f"{origin}: {message} (given: {problem['input']!r})")
    return "\n".join(lines)
