"""transformers' Trainer and TRL's SFTTrainer over PEFT, driven a step at a time so that they can take turns.

Every part of a step is theirs, in the order of their loop: the batch from their data loader with their collator, their
`training_step` (autocast, loss, backward), their clipping, their AdamW. What their loop does besides (logging,
callbacks, the learning rate's schedule) is left out, to their advantage.
"""

import itertools
import tempfile
from collections.abc import Sequence
from typing import Any

from bench.trainers.ours import CLIP, RATE
from bench.trainers.work import Row, Text, tokenizer


class TrainerSteps:
    """A Trainer that takes one step at a call. It reads its batches itself, in the order of its data set."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.model = trainer.model
        trainer.create_optimizer()
        self._prepared, self._optimiser = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1
        self._batches = itertools.chain.from_iterable(trainer.get_train_dataloader() for _ in itertools.count())

    def __call__(self, _batch: Sequence[Any]) -> float:
        """One step; returns the loss before it."""
        trainer = self._trainer
        (inputs,), count = trainer.get_batch_samples(self._batches, 1, trainer.args.device)
        loss = trainer.training_step(self._prepared, inputs, count)
        trainer.accelerator.clip_grad_norm_(self._prepared.parameters(), trainer.args.max_grad_norm)
        self._optimiser.step()
        self._prepared.zero_grad()
        return float(loss)


def plain_trainer(model: Any, rows: Sequence[Row | Text], batch: int, *, bf16: bool) -> TrainerSteps:
    """transformers' Trainer with a padding collator and no evaluation."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer, TrainingArguments

    classifies = isinstance(rows[0], Text)
    reader = tokenizer()
    collator = DataCollatorWithPadding(reader) if classifies else DataCollatorForSeq2Seq(reader)
    arguments = TrainingArguments(bf16=bf16, **_common(batch))
    trainer = Trainer(model=model, args=arguments, train_dataset=_dataset(rows), data_collator=collator)
    return TrainerSteps(trainer)


def trl_trainer(model: Any, rows: Sequence[Row], batch: int, **changes: Any) -> TrainerSteps:
    """TRL's SFTTrainer with its own defaults: bfloat16 autocast, gradient checkpointing, no packing.

    Args:
        changes: Settings of SFTConfig that differ from its defaults.

    Raises:
        ImportError: TRL is not installed.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**_common(batch), **changes)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(_dataset(rows)), processing_class=tokenizer()
    )
    if arguments.gradient_checkpointing:  # as its train() does before the first step
        options = arguments.gradient_checkpointing_kwargs
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    return TrainerSteps(trainer)


def _dataset(rows: Sequence[Row | Text]) -> list[dict[str, Any]]:
    return [
        {"input_ids": list(row.ids), "labels": row.label}
        if isinstance(row, Text)
        else {"input_ids": list(row.ids), "labels": row.labels}
        for row in rows
    ]


def _common(batch: int) -> dict[str, Any]:
    """What is the same for all systems."""
    return {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": batch,
        "train_sampling_strategy": "sequential",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
