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

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[int], tokens: int) -> Answer:
        ids, rows = list(prompt_ids), []
        for _ in range(tokens):
            logits = self.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
            rows.append(logits.log_softmax(-1))
            ids.append(int(logits.argmax()))
        return Answer(ids[len(prompt_ids) :], torch.stack(rows))

    @torch.no_grad()
    def classify(self, ids: Sequence[int]) -> Tensor:
        logits = self.model(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids))).logits[0]
        return logits.softmax(-1)
