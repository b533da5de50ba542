"""The task of scoring answers: a reward model, from pairs of a better and a worse one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adapters.templates import scored_end, scored_ids
from training.config import RewardConfig
from training.data.lengths import find_template
from training.data.rows import PreferenceRow
from training.data.unfit import answer_ids
from training.evaluation.metrics import preference_metrics
from training.fast.model import FastModel, Rows, Target
from training.model import load_classifier
from training.reporting.results import Evaluation, Sample
from training.tasks.examples import PairExample
from training.tasks.instruct import spoken
from training.tasks.task import Metrics, Task

_SAMPLES = 20


class RewardTask(Task[PreferenceRow, PairExample]):
    """−log σ(score of the better − score of the worse), the Bradley–Terry model of preferences."""

    config: RewardConfig

    def __init__(self, config: RewardConfig) -> None:
        self._template = find_template(config.template)
        super().__init__(config)

    def encode_row(self, row: PreferenceRow) -> Sequence[PairExample]:
        """Both answers behind the same prompt, as they are scored when served."""
        for answer in (row.chosen, row.rejected):
            answer_ids(self.tokenizer, answer)  # refuses what holds the token that ends it
        chosen, rejected = (
            tuple(scored_ids(self._template, self.tokenizer, row.prompt, answer))
            for answer in (row.chosen, row.rejected)
        )
        return [PairExample(row.place, chosen, rejected, spoken(row.prompt), row.chosen, row.rejected)]

    def finish(self) -> None:
        """Leave out pairs of which an answer is too long."""
        self.keep_short(lambda example: max(len(example.ids), len(example.rejected)))

    def load_model(self) -> Any:
        """The base with a head of one number, drawn at random."""
        return load_classifier(self.base, ("score",), self.pad_id)

    def weight(self, examples: Sequence[PairExample]) -> float:
        """Pairs."""
        return float(len(examples))

    def loss(self, fast: FastModel, examples: Sequence[PairExample]) -> Tensor:
        """Summed over the pairs."""
        return -logsigmoid(self._margins(fast, examples)).sum()

    def validate(self, fast: FastModel, examples: Sequence[PairExample]) -> Metrics:
        """Loss per pair, and the share of pairs in the right order."""
        return self._figures(*self._scores(fast, examples))

    def measure(self, fast: FastModel) -> Evaluation:
        """The same on the held-out rows, with the scores of the first few."""
        examples = self.examples.held_out
        chosen, rejected = self._scores(fast, examples)
        samples = [
            Sample(
                prompt=f"{example.text}\n→ {example.chosen_text}\n↛ {example.rejected_text}",
                answer=f"{better:.3f} over {worse:.3f}",
                right=better > worse,
                score=better,
            )
            for example, better, worse in zip(examples[:_SAMPLES], chosen, rejected, strict=False)
        ]
        metrics = self._figures(chosen, rejected)
        return Evaluation(part=self.part, rows=len(examples), metrics=metrics, samples=tuple(samples))

    def probe(self) -> tuple[Rows, Sequence[Sequence[Target]] | None]:
        """Both answers of short training rows."""
        return [ids for row in self.short() for ids in (row.ids, row.rejected)], None

    def sample(self, fast: FastModel) -> Sample:
        """The scores of the first validation row."""
        first = self.examples.validation[0]
        ([better], [worse]) = self._scores(fast, [first])
        return Sample(prompt=first.text, answer=f"{better:.3f} over {worse:.3f}", right=better > worse)

    def manifest_fields(self) -> dict[str, Any]:
        """The prompt that comes before an answer, and the token that ends it."""
        eos = scored_end(self.tokenizer)
        return {"task": "score", "prompt": self._template.to_manifest(self.tokenizer), "eos": eos}

    def _margins(self, fast: FastModel, examples: Sequence[PairExample]) -> Tensor:
        rows = [*(example.ids for example in examples), *(example.rejected for example in examples)]
        chosen, rejected = fast.label_logits(rows)[:, 0].chunk(2)
        return chosen - rejected

    @torch.no_grad()
    def _scores(self, fast: FastModel, examples: Sequence[PairExample]) -> tuple[list[float], list[float]]:
        """Of the better and of the worse answers, in the order of ``examples``."""
        fast.model.eval()
        chosen: list[float] = []
        rejected: list[float] = []
        for start in range(0, len(examples), self.config.eval_batch_size):
            batch = examples[start : start + self.config.eval_batch_size]
            rows = [*(example.ids for example in batch), *(example.rejected for example in batch)]
            scores = fast.label_logits(rows)[:, 0].tolist()
            chosen += scores[: len(batch)]
            rejected += scores[len(batch) :]
        return chosen, rejected

    def _figures(self, chosen: Sequence[float], rejected: Sequence[float]) -> Metrics:
        margins = torch.tensor(chosen) - torch.tensor(rejected)
        return {"loss": float(-logsigmoid(margins).mean()), **preference_metrics(chosen, rejected)}
