"""What is trained on what: shapes with random weights, adapters, and rows.

Instructions    GPT-2 small; the shipped example rows through the alpaca template and the embedded base's tokenizer;
                LoRA r 8 on c_attn, c_proj and c_fc; 8 rows a step; the answers' tokens are learned.
Reviews         DistilBERT; LoRA r 4 on q_lin and the head; 4 texts a step; the lengths of film reviews.
"""

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from adapters.base import resolve_base
from adapters.templates import PromptInput, PromptTemplate, completion_ids
from training.fast.model import Target

AnyRow = TypeVar("AnyRow")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOT_LEARNED = -100
BATCH, TEXTS = 8, 4
"""Rows of a step: of instructions, and of reviews."""
LONGEST = 512
# IMDb's first 1,000 training reviews are log-normal in words: mean of the logarithm 5.24 (a median of 190 words), its
# deviation 0.61. WordPiece makes 1.3 tokens of a word there; two special tokens follow, and 512 is the cut.
_LOG_WORDS, _LOG_SPREAD, _TOKENS_A_WORD, _SPECIAL = 5.24, 0.61, 1.3, 2


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its answer as token ids; the first ``prompt`` of them are not learned."""

    ids: tuple[int, ...]
    prompt: int

    @property
    def targets(self) -> list[Target]:
        """What is learned, each with the position that predicts it."""
        return [Target(place - 1, self.ids[place], 1.0) for place in range(self.prompt, len(self.ids))]

    @property
    def labels(self) -> list[int]:
        """The same as transformers' labels."""
        return [NOT_LEARNED] * self.prompt + list(self.ids[self.prompt :])


@dataclass(frozen=True, slots=True)
class Text:
    """A text to classify as token ids."""

    ids: tuple[int, ...]
    label: int


def tokenizer() -> Any:
    """The embedded base's; its ids fit every shape here."""
    return resolve_base("embedded").tokenizer()


def instruction_rows(name: str, count: int, seed: int = 0) -> list[Row]:
    """Some of the shipped example rows, drawn by the seed."""
    lines = (EXAMPLES / f"instructions_{name}.jsonl").read_text("utf-8").splitlines()
    template, reader = PromptTemplate.named("alpaca"), tokenizer()
    rows = []
    for line in random.Random(seed).sample(lines, count):
        fields = json.loads(line)
        prompt = template.encode(reader, PromptInput.from_instruction(fields["instruction"], fields["input"]))
        answer = completion_ids(reader, fields["output"])
        rows.append(Row((*prompt, *answer, reader.eos_token_id), len(prompt)))
    return rows


def review_texts(count: int, seed: int = 0) -> list[Text]:
    """Texts of random tokens with the lengths of film reviews."""
    drawn = random.Random(seed)
    texts = []
    for _ in range(count):
        words = math.exp(drawn.gauss(_LOG_WORDS, _LOG_SPREAD))
        length = max(8, min(LONGEST, round(words * _TOKENS_A_WORD) + _SPECIAL))
        texts.append(Text(tuple(drawn.randrange(1000, 30000) for _ in range(length)), drawn.randrange(2)))
    return texts


def language_model(shape: dict[str, Any] | None = None) -> Any:
    """GPT-2 small with random weights, without dropout, wrapped by PEFT."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    still = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    model = AutoModelForCausalLM.from_config(GPT2Config(**still, **(shape or {})))
    targets = ["c_attn", "c_proj", "c_fc"]
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=targets, fan_in_fan_out=True)
    return _started(get_peft_model(model, lora))


def classifier(shape: dict[str, Any] | None = None) -> Any:
    """DistilBERT with random weights and its own dropouts, wrapped by PEFT."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, DistilBertConfig

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(DistilBertConfig(**(shape or {})))
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=32, lora_dropout=0.01, target_modules=["q_lin"])
    return _started(get_peft_model(model, lora))


def twin(model: Any) -> Any:
    """The same model with trained parameters of its own; frozen ones are shared."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)


def batches(rows: Sequence[AnyRow], size: int) -> list[Sequence[AnyRow]]:
    """Whole batches, in order."""
    return [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What gradients flow to."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _started(model: Any) -> Any:
    """With B matrices that are not zero, so that A has a gradient from the first step."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    return model
