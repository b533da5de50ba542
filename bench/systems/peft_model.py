"""PEFT on transformers: what one would write oneself to serve several adapters from one base."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapters.quiet import quiet_transformers
from bench.workloads import padded


class PeftSystem:
    """A base with all adapters loaded, in one type.

    Args:
        base: Folder of the base.
        adapters: Folders of the adapters; a request names one by its place here.
        dtype: Of the base and of the adapters.
        num_labels: Makes it classify; PEFT mixes heads in a batch only if all have as many labels.
    """

    def __init__(self, *, base: str, adapters: Sequence[Path], dtype: str, num_labels: int | None = None) -> None:
        kind = getattr(torch, dtype)
        with quiet_transformers():
            if num_labels is None:
                model = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
            else:
                model = AutoModelForSequenceClassification.from_pretrained(base, dtype=kind, num_labels=num_labels)
            wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name="a0", autocast_adapter_dtype=False)
            for number, folder in enumerate(adapters[1:], start=1):
                wrapped.load_adapter(folder, adapter_name=f"a{number}", autocast_adapter_dtype=False)
        self._model = wrapped.to(kind).eval()
        self._padding = model.config.pad_token_id or 0

    def mixed(self, prompts: Sequence[Sequence[int]], which: Sequence[int], new_tokens: int) -> int:
        """All prompts in one batch, each row under its own adapter (`adapter_names`)."""
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[f"a{index}" for index in which],
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
            )
        return int(output.shape[1] - ids.shape[1]) * len(prompts)

    def one_at_a_time(self, prompts: Sequence[Sequence[int]], which: Sequence[int], new_tokens: int) -> int:
        """One request after the other, its adapter made the active one."""
        total = 0
        for prompt, index in zip(prompts, which, strict=True):
            self._model.set_adapter(f"a{index}")
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                output = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    do_sample=False,
                )
            total += int(output.shape[1] - ids.shape[1])
        return total

    def logits(self, prompts: Sequence[Sequence[int]], index: int) -> torch.Tensor:
        """Logits behind each prompt under one adapter."""
        self._model.set_adapter(f"a{index}")
        with torch.inference_mode():
            output = self._model(input_ids=torch.tensor(prompts)).logits
        return output[:, -1] if output.dim() == 3 else output

    def classify(self, texts: Sequence[Sequence[int]], which: Sequence[int]) -> list[tuple[float, ...]]:
        """All texts in one padded batch, each row under its own adapter; the probabilities of its labels."""
        ids, mask = padded(texts, self._padding)
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                adapter_names=[f"a{index}" for index in which],
            ).logits
        return [tuple(row) for row in logits.float().softmax(-1).tolist()]

    def classified(self, texts: Sequence[Sequence[int]], which: Sequence[int]) -> int:
        """The same, returning how many texts there were."""
        return len(self.classify(texts, which))
