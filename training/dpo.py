"""The loss of direct preference optimisation, computed by TRL's DPOTrainer over our token ids.

The trainer is asked for the loss of one batch at a time and takes no steps of its own: order, optimiser, checkpoints
and measurements are those of every other task. The policy is the model with its adapter; TRL computes the reference
with the adapter switched off.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.errors import ConfigError, TrainingError

REFERENCE = "ref"
"""What TRL calls the copy of the adapter that it would keep as the reference."""
_PACKAGES = ("trl", "datasets")


class DpoLoss:
    """−log σ(β · (log-ratio of the better answer − log-ratio of the worse)), the mean over a batch.

    Args:
        model: PEFT's model on its device; TRL adds a way to ask it for log-probabilities.
        tokenizer: The base's.
        beta: How strongly the policy is held to the reference.
        pad_id: Fills up rows.

    Raises:
        TrainingError: TRL is not installed.
    """

    def __init__(self, model: Any, tokenizer: Any, *, beta: float, pad_id: int) -> None:
        check_installed()
        # Making a Trainer seeds everything anew; a run that goes on has its random state already.
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            self._trainer = _make_trainer(model, tokenizer, beta, pad_id, folder)
        # TRL keeps a copy of the adapter as the reference; without one it switches the adapter off. That is the base,
        # also for a run that goes on with a trained adapter.
        if REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
        self.model = model

    def __call__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int], int]], dtype: torch.dtype) -> Tensor:
        """The mean loss of pairs (better ids, worse ids, length of the prompt that both begin with); a scalar.

        Args:
            dtype: In which products run, float32 or bfloat16.
        """
        rows = [
            {
                "prompt_ids": list(chosen[:prompt]),
                "chosen_ids": list(chosen[prompt:]),
                "rejected_ids": list(worse[prompt:]),
            }
            for chosen, worse, prompt in pairs
        ]
        device = self.model.device
        batch = {name: value.to(device) for name, value in self._trainer.data_collator(rows).items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss: Tensor = self._trainer.compute_loss(self.model, batch)
        return loss


def check_installed() -> None:
    """Find out whether TRL is there, without the seconds that importing it takes.

    Raises:
        TrainingError: it is not.
    """
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise TrainingError(f"{missing[0]} is not installed, which dpo needs: pip install 'tenora[dpo]'")


def check_alone(processes: int) -> None:
    """TRL gathers figures of equal size from all processes in every loss; our shares of a step may differ.

    Raises:
        ConfigError: several processes were launched.
    """
    if processes > 1:
        raise ConfigError("dpo trains in one process: start it without accelerate launch")


def _make_trainer(model: Any, tokenizer: Any, beta: float, pad_id: int, folder: str) -> Any:
    import datasets
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    datasets.disable_progress_bars()
    # One setting under two names: transformers has given it a new one.
    names = ("activation_checkpointing", "gradient_checkpointing")
    recomputing = next(name for name in names if name in DPOConfig.__dataclass_fields__)
    settings = DPOConfig(
        output_dir=folder,
        beta=beta,
        max_length=None,  # what is too long was left out before
        disable_dropout=False,  # ours to say
        bf16=False,
        use_cpu=model.device.type == "cpu",
        report_to="none",
        **{recomputing: False},
    )
    # It wants rows to train on; those are never read, since no step is taken by it.
    unread = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    return DPOTrainer(
        model=model,
        args=settings,
        train_dataset=unread,
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=pad_id),
    )
