"""The task of preferring better answers: direct preference optimisation."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.config import DpoConfig
from training.data.lengths import find_template
from training.data.rows import PreferenceRow
from training.data.unfit import answer_ids
from training.dpo import DpoLoss, check_alone, check_installed
from training.evaluation.metrics import preference_metrics
from training.fast.model import FastModel, Rows, Target
from training.model import load_causal
from training.reporting.results import Evaluation, Sample
from training.tasks.answers import greedy
from training.tasks.examples import PreferenceExample
from training.tasks.instruct import spoken
from training.tasks.task import Metrics, Task


class DpoTask(Task[PreferenceRow, PreferenceExample]):
    """−log σ(β · margin); the margin of a pair is how much more than the base the policy prefers the better answer.

    Steps take the loss from TRL; measurements compute it from log-probabilities of the fast model.
    """

    config: DpoConfig

    def __init__(self, config: DpoConfig) -> None:
        check_installed()
        check_alone(int(os.environ.get("WORLD_SIZE", "1")))
        self._template = find_template(config.template)
        self._objective: DpoLoss | None = None
        self._preferred: dict[PreferenceExample, float] = {}
        super().__init__(config)

    def encode_row(self, row: PreferenceRow) -> Sequence[PreferenceExample]:
        """Both answers with one end token each behind the prompt, as it is rendered when served."""
        prompt, eos = self._template.encode(self.tokenizer, row.prompt), self.tokenizer.eos_token_id
        answers = [answer_ids(self.tokenizer, answer) for answer in (row.chosen, row.rejected)]
        chosen, rejected = ((*prompt, *answer, eos) for answer in answers)
        return [
            PreferenceExample(
                row.place, chosen, rejected, spoken(row.prompt), row.chosen.strip(), row.rejected.strip(), len(prompt)
            )
        ]

    def finish(self) -> None:
        """Leave out pairs of which an answer is too long."""
        self.keep_short(lambda example: max(len(example.ids), len(example.rejected)))

    def load_model(self) -> Any:
        """The base as a language model."""
        return load_causal(self.base)

    def weight(self, examples: Sequence[PreferenceExample]) -> float:
        """Pairs."""
        return float(len(examples))

    def loss(self, fast: FastModel, examples: Sequence[PreferenceExample]) -> Tensor:
        """TRL's, summed over the pairs."""
        if self._objective is None or self._objective.model is not fast.model:
            config = self.config
            self._objective = DpoLoss(fast.model, self.tokenizer, beta=config.beta, pad_id=self.pad_id)
        pairs = [(example.ids, example.rejected, example.prompt_length) for example in examples]
        return self._objective(pairs, fast.dtype) * len(examples)

    def mean_loss(self, fast: FastModel, examples: Sequence[PreferenceExample]) -> float:
        """The loss of ``examples``, without TRL."""
        return self._figures(self.margins(fast, examples))["loss"]

    def validate(self, fast: FastModel, examples: Sequence[PreferenceExample]) -> Metrics:
        """Loss per pair, the share of pairs in the right order, and the mean margin times β."""
        return self._figures(self.margins(fast, examples))

    def measure(self, fast: FastModel) -> Evaluation:
        """The same on the held-out rows, and the answers to the first of them."""
        examples = self.examples.held_out
        return Evaluation(
            part=self.part,
            rows=len(examples),
            metrics=self.validate(fast, examples),
            samples=tuple(self._answer(fast, examples[: self.config.answers])),
        )

    def probe(self) -> tuple[Rows, Sequence[Sequence[Target]] | None]:
        """Both answers of short training rows."""
        rows = [(row, ids) for row in self.short() for ids in (row.ids, row.rejected)]
        return [ids for _, ids in rows], [row.targets(ids, 1.0) for row, ids in rows]

    def sample(self, fast: FastModel) -> Sample:
        """The greedy answer to the first validation row."""
        return self._answer(fast, self.examples.validation[:1])[0]

    def manifest_fields(self) -> dict[str, Any]:
        """The prompt and the token that ends an answer."""
        eos = {"text": self.tokenizer.eos_token, "id": self.tokenizer.eos_token_id}
        return {"task": "generate", "prompt": self._template.to_manifest(self.tokenizer), "eos": eos}

    @torch.no_grad()
    def margins(self, fast: FastModel, examples: Sequence[PreferenceExample]) -> list[float]:
        """For each pair, how much more than the base the model prefers the better answer, in nats.

        What the base prefers is computed once for each pair of a run.
        """
        fast.model.eval()
        new = [example for example in examples if example not in self._preferred]
        with fast.model.disable_adapter():
            self._preferred |= {example: _preference(fast, example) for example in new}
        return [_preference(fast, example) - self._preferred[example] for example in examples]

    def _answer(self, fast: FastModel, examples: Sequence[PreferenceExample]) -> list[Sample]:
        """Greedy answers beside the better ones; no answer is the only right one."""
        said = greedy(
            fast.model,
            self.tokenizer,
            [example.ids[: example.prompt_length] for example in examples],
            pad_id=self.pad_id,
            most_tokens=self.config.answer_tokens,
            context=self.base.max_length,
            batch_size=self.config.eval_batch_size,
        )
        return [
            Sample(prompt=example.text, answer=answer, expected=example.chosen_text)
            for example, answer in zip(examples, said, strict=True)
        ]

    def _figures(self, margins: Sequence[float]) -> Metrics:
        rewards = torch.tensor(margins, dtype=torch.float64) * self.config.beta
        return {
            "loss": float(-logsigmoid(rewards).mean()),
            **preference_metrics(rewards.tolist(), [0.0] * len(margins)),
        }


def _preference(fast: FastModel, example: PreferenceExample) -> float:
    """log p(better answer) − log p(worse answer), the prompt given. Both in one call, so that it is read once."""
    targets = [example.targets(example.ids, 1.0), example.targets(example.rejected, -1.0)]
    return -float(fast.token_loss([example.ids, example.rejected], targets))
