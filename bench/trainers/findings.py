"""What a run of the training benchmark found."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.document import Document, short
from bench.measuring import Spread

RATIOS: Mapping[str, str] = {
    "fp32_vs_trainer": "instructions: a step of Trainer in float32 ÷ ours in float32",
    "bf16_vs_trainer": "instructions: a step of Trainer in float32 ÷ ours in bfloat16",
    "bf16_vs_trainer_bf16": "instructions: a step of Trainer with bf16=True ÷ ours in bfloat16",
    "bf16_vs_trl": "instructions: a step of SFTTrainer's defaults ÷ ours in bfloat16",
    "bf16_vs_trl_unchecked": "instructions: the same with gradient_checkpointing=False ÷ ours in bfloat16",
    "distilbert_fp32": "reviews: a step of Trainer in float32 ÷ ours in float32",
    "distilbert_bf16": "reviews: a step of Trainer in float32 ÷ ours in bfloat16",
    "eval_share": "evaluation's share of a run in float32, every 5 steps on 5 batches of validation rows",
    "loss_diff_fp32": "loss of a batch: relative difference of ours in float32 from the plain way",
    "grad_diff_fp32": "its gradients: norm of the difference ÷ norm, in float32",
    "grad_diff_bf16": "the same of ours in bfloat16",
}
LESS_IS_BETTER = frozenset({"eval_share", "loss_diff_fp32", "grad_diff_fp32", "grad_diff_bf16"})


class Findings(Document):
    """Collects what sections measure: besides the ratios, what a step of each system takes."""

    def __init__(self, path: Path | None, machine: Mapping[str, Any], workload: Mapping[str, Any]) -> None:
        super().__init__(path, machine, workload, RATIOS)
        self.document["steps"] = {}

    def step(self, section: str, key: str, name: str, seconds: Sequence[float]) -> None:
        """What a step of a system took, over the batches."""
        spread = Spread(tuple(second * 1e3 for second in seconds), "ms")
        self.document["steps"].setdefault(section, {})[key] = {"system": name, **spread.to_json()}

    def median_ratio(self, key: str, values: Sequence[float]) -> None:
        """The median of a ratio's values, one a batch; its extremes stand with the figures."""
        self.ratio(key, statistics.median(values))
        if len(values) > 1:
            self.figure("spread of the ratios", key, [short(min(values)), short(max(values))])

    def figure(self, section: str, key: str, value: Any) -> None:
        """Whatever else was measured."""
        self.document["figures"].setdefault(section, {})[key] = short(value) if isinstance(value, float) else value
