"""Greedy answers, many at a time."""

from collections.abc import Sequence
from typing import Any

import torch

from training.batches import by_length, pad_left
from training.task import to_device


@torch.inference_mode()
def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    most_tokens: int,
    context: int,
    batch_size: int,
) -> list[str]:
    """The answer to each prompt, without its special tokens, stripped, in the order of the prompts.

    A prompt and its answer together have at most ``context`` tokens.
    """
    from transformers import GenerationConfig

    model.eval()
    answers = [""] * len(prompts)
    for chosen in by_length(prompts, batch_size):
        batch = to_device(pad_left([prompts[index] for index in chosen], pad_id), model.device)
        width = batch["input_ids"].shape[1]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(1, min(most_tokens, context - width)),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad_id,
        )
        rows = model.generate(**batch, generation_config=settings)
        for index, row in zip(chosen, rows, strict=True):
            answers[index] = tokenizer.decode(row[width:], skip_special_tokens=True).strip()
    return answers
