"""The task of following instructions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSource
from adapters.templates import PromptInput, PromptTemplate, completion_ids
from training.batches import NOT_LEARNED, AnswerExample, Batch, collate_answers
from training.config import InstructConfig
from training.errors import ConfigError, DataError, Problem
from training.files import counted
from training.generate import greedy
from training.model import load_causal
from training.rows import InstructRow, read_instruct
from training.split import Split, divide
from training.task import Measured, Metrics, Sampled, Task, given_files, note_shared

_NAMED = ("alpaca", "chat", "plain")
_FAST_LOGITS_ERROR = 1e-4


class InstructTask(Task[AnswerExample]):
    """Rows of instruction and answer; loss over the answer's tokens, exact match of greedy answers."""

    config: InstructConfig

    def __init__(self, config: InstructConfig) -> None:
        """Read the rows.

        Raises:
            DataError: with every bad row.
        """
        self.config = config
        self.notes = []
        self._fast_logits: bool | None = None
        self._template = _template(config.template)
        files = given_files(config)
        parts, hashes = read_instruct([path for _, path in files], config.ignore_columns)
        self.data_sha256 = hashes[0]
        self._rows = divide(config, dict(zip([part for part, _ in files], parts, strict=True)))
        note_shared(self.notes, (row.prompt for row in self._rows.train), (row.prompt for row in self._rows.held_out))

    def encode(self, base: BaseSource) -> None:
        """Render and tokenise; rows longer than the limit are dropped, since their end is what matters most."""
        self.use(base)
        problems: list[Problem] = []
        parts = {
            "train": self._examples(self._rows.train, problems, self.config.data),
            "validation": self._examples(self._rows.validation, problems, self.config.validation),
            "test": self._examples(self._rows.test, problems, self.config.test),
        }
        if problems:
            raise DataError(problems)
        fitting = {part: [row for row in rows if len(row.ids) <= self.max_length] for part, rows in parts.items()}
        dropped = sum(len(rows) - len(fitting[part]) for part, rows in parts.items())
        if dropped:
            self.notes.append(f"{dropped} rows of more than {self.max_length} tokens are left out (--max-length)")
        self.split = Split(**fitting)
        if not self.split.train or not self.split.validation:
            raise ConfigError(f"no rows are left within {self.max_length} tokens: raise --max-length")

    def load_model(self) -> Any:
        """The base as a language model."""
        return load_causal(self.base)

    def collate(self, examples: Sequence[AnswerExample]) -> Batch:
        """Inputs and shifted targets."""
        return collate_answers(examples, self.pad_id)

    def logits(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the learned positions only: the vocabulary is wide, and prompts need none of it."""
        learned = batch["targets"] != NOT_LEARNED
        if self._fast_logits is None:
            self._fast_logits = _fast_equals_plain(model, batch, learned)
        forward = _fast_logits if self._fast_logits else _plain_logits
        return forward(model, batch, learned), batch["targets"][learned]

    def validate(self, model: Any, examples: Sequence[AnswerExample]) -> Metrics:
        """Loss per token; exact match as well if it chooses the epoch."""
        metrics = {"loss": self.mean_loss(model, examples)}
        if self.config.metric == "exact_match":
            metrics["exact_match"] = _share(self._answers(model, examples[: self.config.answers or 1]))
        return metrics

    def measure(self, model: Any) -> Measured:
        """Loss per token and exact match on the held-out rows."""
        examples = self.split.held_out
        metrics = {"loss": self.mean_loss(model, examples)}
        samples = self._answers(model, examples[: self.config.answers])
        if samples:
            metrics["exact_match"] = _share(samples)
        return Measured(metrics, tuple(samples))

    def sample(self, model: Any) -> Sampled:
        """The greedy answer to the first validation row."""
        return self._answers(model, self.split.validation[:1])[0]

    def manifest_fields(self) -> dict[str, Any]:
        """The prompt and the token that ends an answer."""
        eos = {"text": self.tokenizer.eos_token, "id": self.tokenizer.eos_token_id}
        return {"task": "generate", "prompt": self._template.to_manifest(self.tokenizer), "eos": eos}

    def _examples(self, rows: Sequence[InstructRow], problems: list[Problem], file: Path | None) -> list[AnswerExample]:
        """Rows as ids, each ending with the only end-of-sequence token of its answer."""
        eos = self.tokenizer.eos_token_id
        file = file or self.config.data or Path()
        examples = []
        for row in rows:
            prompt = self._template.encode(self.tokenizer, PromptInput.from_instruction(row.instruction, row.input))
            answer = completion_ids(self.tokenizer, row.output)
            if eos in answer:
                what = f"'output' holds {self.tokenizer.eos_token}, which is how the base ends an answer"
                problems.append(Problem(file, counted(file), row.number, what, "take it out of the text"))
            learned_from = 1 if self.config.loss == "all" else len(prompt)
            ids = (*prompt, *answer, eos)
            examples.append(AnswerExample(row.number, ids, len(prompt), learned_from, row.prompt, row.output.strip()))
        return examples

    def _answers(self, model: Any, examples: Sequence[AnswerExample]) -> list[Sampled]:
        answers = greedy(
            model,
            self.tokenizer,
            [example.ids[: example.prompt_length] for example in examples],
            pad_id=self.pad_id,
            most_tokens=self.config.answer_tokens,
            context=self.base.max_length,
            batch_size=self.batch_size,
        )
        pairs = zip(examples, answers, strict=True)
        return [Sampled(example.text, answer, example.expected) for example, answer in pairs]


def _template(spec: str) -> PromptTemplate:
    """One of the named templates, or the text of a Jinja file."""
    if spec in _NAMED:
        return PromptTemplate.named(spec)
    try:
        return PromptTemplate.from_text(Path(spec).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        named = ", ".join(_NAMED)
        raise ConfigError(f"--template {spec}: neither {named} nor a file that can be read ({error})") from None


def _share(samples: Sequence[Sampled]) -> float:
    return sum(bool(sample.right) for sample in samples) / len(samples)


def _plain_logits(model: Any, batch: Batch, learned: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits[learned]


def _fast_logits(model: Any, batch: Batch, learned: Tensor) -> Tensor:
    """The output head on the learned positions only."""
    causal = model.get_base_model()
    backbone = getattr(causal, causal.base_model_prefix)
    hidden = backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    logits: Tensor = causal.get_output_embeddings()(hidden[learned])
    return logits


@torch.inference_mode()
def _fast_equals_plain(model: Any, batch: Batch, learned: Tensor) -> bool:
    """Whether the short way is this architecture's way: some scale or cap their logits after the head."""
    training = model.training
    model.eval()
    plain, fast = _plain_logits(model, batch, learned), _fast_logits(model, batch, learned)
    model.train(training)
    return torch.allclose(plain, fast, rtol=_FAST_LOGITS_ERROR, atol=_FAST_LOGITS_ERROR)
