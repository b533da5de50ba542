"""What the tasks have in common that train a language model: instructions and plain text."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from training.config import AnsweringConfig
from training.data.dataset import Row
from training.evaluation.metrics import answer_metrics
from training.fast.model import FastModel, Rows, Target
from training.model import load_causal
from training.reporting.results import Evaluation, Sample
from training.tasks.answers import greedy
from training.tasks.examples import AnswerExample
from training.tasks.task import Metrics, Task

AnyRow = TypeVar("AnyRow", bound=Row)


class LanguageTask(Task[AnyRow, AnswerExample]):
    """Cross-entropy per token, weighted; greedy answers."""

    config: AnsweringConfig

    def load_model(self) -> Any:
        """The base as a language model."""
        return load_causal(self.base)

    def weight(self, examples: Sequence[AnswerExample]) -> float:
        """Learned tokens, by their weights."""
        return sum(example.weight for example in examples)

    def loss(self, fast: FastModel, examples: Sequence[AnswerExample]) -> Tensor:
        """Summed cross-entropy of the learned tokens, by their weights."""
        return fast.token_loss([example.ids for example in examples], [example.targets() for example in examples])

    def validate(self, fast: FastModel, examples: Sequence[AnswerExample]) -> Metrics:
        """Loss per token; exact match as well if it chooses the epoch."""
        metrics = {"loss": self.mean_loss(fast, examples)}
        if self.config.metric == "exact_match":
            answered = self.answer(fast, examples[: self.config.answers])
            metrics["exact_match"] = sum(bool(sample.right) for sample in answered) / len(answered)
        return metrics

    @torch.no_grad()
    def measure(self, fast: FastModel) -> Evaluation:
        """Loss, perplexity, token accuracy, and the answers to the first held-out rows."""
        fast.model.eval()
        examples = self.examples.held_out
        loss, right, tokens = 0.0, 0, 0
        for batch in self.batches(examples):
            figures = fast.token_figures([row.ids for row in batch], [row.targets() for row in batch])
            loss, right, tokens = loss + figures[0], right + figures[1], tokens + figures[2]
        samples = self.answer(fast, examples[: self.config.answers])
        answered = [sample.right for sample in samples if sample.right is not None]
        metrics = answer_metrics(loss / (self.weight(examples) or 1.0), answered, right, tokens)
        return Evaluation(part=self.part, rows=len(examples), metrics=metrics, samples=tuple(samples))

    def probe(self) -> tuple[Rows, Sequence[Sequence[Target]] | None]:
        """Short training rows with what is learned of them."""
        rows = self.short()
        return [row.ids for row in rows], [row.targets() for row in rows]

    def sample(self, fast: FastModel) -> Sample:
        """The greedy answer to the first validation row."""
        return self.answer(fast, self.examples.validation[:1])[0]

    @abstractmethod
    def answer(self, fast: FastModel, examples: Sequence[AnswerExample]) -> list[Sample]:
        """Greedy answers to the prompts of ``examples``."""

    def continued(self, fast: FastModel, examples: Sequence[AnswerExample]) -> list[str]:
        """What the model writes after the prompt of each example."""
        return greedy(
            fast.model,
            self.tokenizer,
            [example.ids[: example.prompt_length] for example in examples],
            pad_id=self.pad_id,
            most_tokens=self.config.answer_tokens,
            context=self.base.max_length,
            batch_size=self.config.eval_batch_size,
        )
