"""transformers without adapters: `generate` on a padded batch, and its own continuous batching."""

import logging
import math
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from adapters.quiet import quiet_transformers

_PAGE = 64


class TransformersSystem:
    """A base alone.

    Args:
        base: Folder of the base.
        dtype: Of the base.
    """

    def __init__(self, *, base: str, dtype: str) -> None:
        with quiet_transformers():
            self._model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """All prompts in one batch."""
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
            )
        return int(output.shape[1] - ids.shape[1]) * len(prompts)

    def continuous(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """The same through `generate_batch`, with a cache that is as large as the work needs and no larger."""
        pages = math.ceil((max(len(prompt) for prompt in prompts) + new_tokens) / _PAGE)
        results = self._model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=GenerationConfig(
                max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE, num_blocks=pages * len(prompts) + 1, max_batch_tokens=512
            ),
        )
        if failed := [result.error for result in results.values() if result.error]:
            raise RuntimeError(failed[0])
        total = sum(len(result.generated_tokens) for result in results.values())
        if total != len(prompts) * new_tokens:
            raise RuntimeError(f"it wrote {total} tokens of {len(prompts) * new_tokens}")
        return total
