"""Tiny task models wrapped by PEFT, rows for them, and what a way of computing makes of both."""

import copy
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support.tiny import CONFIGS
from training.fast.levers import NEEDS, Levers
from training.fast.model import FastModel, Target

PAD, VOCABULARY = 1, 320
DECODERS = ("gpt2", "llama", "qwen3", "mistral", "opt", "gpt_neox", "phi")
ENCODERS = ("distilbert", "bert", "roberta")
LEVERS = ("packing", "share_prefix", "loss_rows", "narrow", "fused", "compiled", "prepack")
"""Those of the model; the others choose a precision."""
STILL = dict.fromkeys(
    ("embd_pdrop", "attn_pdrop", "resid_pdrop", "dropout", "attention_dropout", "seq_classif_dropout",
     "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout"), 0.0
)  # fmt: skip

Rows = list[list[int]]


def ways() -> dict[str, Levers]:
    """All levers, each alone with what it needs, and each missing."""
    alone = {f"only {name}": Levers.only(name, *NEEDS.get(name, ())) for name in LEVERS}
    return {"all": Levers(), **alone, **{f"no {name}": Levers().without(name) for name in LEVERS}}


def base_model(config: Any, *, classify: bool = False, spread: float = 0.15, seed: int = 0) -> Any:
    """A task's model whose logits differ between tokens by far more than rounding."""
    torch.manual_seed(seed)
    config.pad_token_id = PAD
    model = (AutoModelForSequenceClassification if classify else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=spread / 3)  # biases and norms that do something
    return model.eval()


def config_of(kind: str, **changes: Any) -> Any:
    """The tiny configuration of an architecture."""
    return AutoConfig.for_model(kind, **{**CONFIGS.get(kind, {}), "vocab_size": VOCABULARY, **changes})


def wrapped(model: Any, *, spread: float = 0.2, **lora: Any) -> Any:
    """LoRA on all linears, with matrices that are not zero; a head is trained whole."""
    classify = model.get_output_embeddings() is None
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear",
        "exclude_modules": r".*(classifier|score).*" if classify else None,
    }  # fmt: skip
    peft = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM,
            fan_in_fan_out=model.config.model_type == "gpt2",
            **{**settings, **lora},
        ),
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.normal_(0, spread)
    return peft.eval()


@cache
def _adapted(kind: str, classify: bool) -> Any:
    return wrapped(base_model(config_of(kind, **({"num_labels": 3} if classify else {})), classify=classify))


def adapted(kind: str, *, classify: bool = False) -> Any:
    """A fresh copy of the tiny model of an architecture with its adapter."""
    return copy.deepcopy(_adapted(kind, classify))


def some_rows(own: Sequence[int], shared: int = 7, seed: int = 0) -> Rows:
    """Rows that begin alike and go on alone; the first own tokens differ, so that the beginning is what it says."""
    generator = torch.Generator().manual_seed(seed)
    beginning = torch.randint(2, VOCABULARY, (shared,), generator=generator).tolist()
    rows = []
    for index, length in enumerate(own):
        tail = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        rows.append([*beginning, *([2 + index, *tail[1:]] if tail else [])])
    return rows


def tree_rows(count: int, seed: int, most: int = 9) -> Rows:
    """Rows that begin alike, and some that go on behind parts of others; the third is all of the first's beginning."""
    drawn = random.Random(seed)
    rows = some_rows((most, most), seed=seed)
    rows.append(rows[0][:-2])
    while len(rows) < count:
        of = drawn.choice(rows)
        tail = [drawn.randrange(2, VOCABULARY) for _ in range(drawn.randrange(most))]
        rows.append(of[: drawn.randrange(7, len(of) + 1)] + tail)
    drawn.shuffle(rows)
    return rows


# Together longer than any position of the tiny models, and than Mistral's window of 8.
MIXED = some_rows((1, 5, 13, 40, 90, 120))


def learned(rows: Rows) -> list[list[Target]]:
    """The second half of each row, each token with a weight of its own."""
    return [
        [Target(place, row[place + 1], 1 + place / 10) for place in range((len(row) - 1) // 2, len(row) - 1)]
        for row in rows
    ]


def parameters(model: Any) -> dict[str, Tensor]:
    """What is trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def computed(
    model: Any, levers: Levers, rows: Rows = MIXED, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss or logits, gradient of every trained parameter) by some levers."""
    with FastModel(model, levers, dtype, PAD, packs=True) as fast:
        if model.get_base_model().get_output_embeddings() is not None:
            output = loss = fast.token_loss(rows, learned(rows))
        else:
            output = fast.label_logits(rows)
            labels = torch.arange(len(rows)) % output.shape[1]
            loss = torch.nn.functional.cross_entropy(output, labels, reduction="sum")
        wanted = parameters(model)
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    gradients = zip(wanted.items(), found, strict=True)
    return output.detach(), {
        name: torch.zeros_like(value) if gradient is None else gradient for (name, value), gradient in gradients
    }


def away(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference ÷ the norm."""
    return float((found - expected).norm() / expected.norm())


def all_of(gradients: dict[str, Tensor]) -> Tensor:
    """End to end."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])
