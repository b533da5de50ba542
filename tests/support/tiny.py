"""Tiny seeded models and adapters written by PEFT itself: real parts that fit in a test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HIDDEN, LAYERS, HEADS, CONTEXT = 32, 2, 4, 256

_DECODER = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, **_DECODER},
    "llama": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": CONTEXT, **_DECODER,
    },
    "qwen3": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": CONTEXT, **_DECODER,
    },
    "mistral": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": CONTEXT, "sliding_window": 8, **_DECODER,
    },
    "opt": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": 64,
        "word_embed_proj_dim": HIDDEN, "max_position_embeddings": CONTEXT, **_DECODER,
    },
    "gpt_neox": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
        "max_position_embeddings": CONTEXT, **_DECODER,
    },
    "phi": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
        "max_position_embeddings": CONTEXT, **_DECODER,
    },
    "distilbert": {
        "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 64, "max_position_embeddings": CONTEXT,
        "pad_token_id": 1,
    },
    "bert": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
        "max_position_embeddings": CONTEXT, "pad_token_id": 1,
    },
    "roberta": {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
        "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1,
    },
}  # fmt: skip
DECODERS = ("gpt2", "llama", "qwen3")
ENCODERS = ("distilbert", "bert")

_CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n### Input:\n### Response:\n",
    "The meal was cooked by the chef. It was good. Not a fan, don't recommend. Better than the first one.",
    "the quick brown fox jumps over the lazy dog 0123456789 éà 你好 🙂",
]

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def tiny_tokenizer(*, encoder: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens: any text survives, and one character may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT,
    )
    if not encoder:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_base(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a seeded random model of architecture ``kind`` with its tokenizer; return its folder."""
    torch.manual_seed(seed)
    encoder = kind in ("distilbert", "bert", "roberta")
    tokenizer = tiny_tokenizer(encoder=encoder)
    config = AutoConfig.for_model(kind, **CONFIGS[kind], vocab_size=len(tokenizer))
    # BERT is saved headless with its pooler, as sentence encoders are published; the others as pre-trained.
    auto = AutoModel if kind == "bert" else AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    _spread(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _spread(model: PreTrainedModel) -> None:
    """Widen the tiny initial weights, so that logits differ between tokens by far more than rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)


def write_peft_adapter(
    base: Path,
    folder: Path,
    *,
    task: str = "generate",
    r: int = 4,
    alpha: int = 8,
    targets: Sequence[str] | str = "all-linear",
    num_labels: int = 2,
    seed: int = 0,
    **lora: Any,
) -> Path:
    """Let PEFT write an adapter for ``base``, its B matrices and head random instead of zero."""
    torch.manual_seed(1000 + seed)
    model = peft_model(base, task=task, num_labels=num_labels)
    lora.setdefault("fan_in_fan_out", model.config.model_type == "gpt2")
    if task == "classify":  # the head is trained whole; "all-linear" would wrap parts of it a second time
        lora.setdefault("exclude_modules", r".*(classifier|score).*")
    wrapped = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM if task == "generate" else TaskType.SEQ_CLS,
            r=r,
            lora_alpha=alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            **lora,
        ),
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2 if "lora_" in name else 0.5)
    wrapped.save_pretrained(folder)
    return folder


def peft_model(base: Path, *, task: str, num_labels: int = 2) -> PreTrainedModel:
    """The architecture's own model for a task in fp32, with the base's weights."""
    if task == "generate":
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels, dtype=torch.float32).eval()
