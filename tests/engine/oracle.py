"""What PEFT itself computes, one request at a time and without any cache: the engine must agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from tests.support.tiny import peft_model


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and the log-probabilities of the whole vocabulary before each: ``[n, vocabulary]``."""

    tokens: list[int]
    logprobs: Tensor


class Oracle:
    """A base, or an adapter over it, in PEFT: as PEFT computes it, or merged into the weights."""

    def __init__(
        self, base: Path, adapter: Path | None, *, task: str = "generate", num_labels: int = 2, merged: bool = False
    ) -> None:
        model: nn.Module = peft_model(base, task=task, num_labels=num_labels)
        if adapter is not None:
            wrapped = PeftModel.from_pretrained(model, adapter)
            model = wrapped.merge_and_unload() if merged else wrapped
        self.model = model.eval()
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], Answer] = {}

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[int], tokens: int) -> Answer:
        ids, rows = list(prompt_ids), []
        for _ in range(tokens):
            logits = self.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
            rows.append(logits.log_softmax(-1))
            ids.append(int(logits.argmax()))
        return Answer(ids[len(prompt_ids) :], torch.stack(rows))

    @torch.no_grad()
    def follow(self, prompt_ids: Sequence[int], answer: Sequence[int]) -> Answer:
        """The greedy token before each of an answer's, given those before it: the same answer if that is greedy.

        One pass instead of one for each token, and only the first time that it is asked.
        """
        key = tuple(prompt_ids), tuple(answer)
        if key not in self._known:
            ids = [*prompt_ids, *answer[:-1]]
            logits = self.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
            rows = logits[-len(answer) :]
            self._known[key] = Answer(rows.argmax(-1).tolist(), rows.log_softmax(-1))
        return self._known[key]

    @torch.no_grad()
    def classify(self, ids: Sequence[int]) -> Tensor:
        logits = self.model(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids))).logits[0]
        return logits.softmax(-1)
