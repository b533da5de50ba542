"""What a run found: one JSON document, replaced on disk as a whole after each section."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


class Findings:
    """Collects what sections measure.

    Args:
        path: Where the JSON goes; None keeps it in memory.
        machine: What it is measured on.
        workload: How much is measured.
    """

    def __init__(self, path: Path | None, machine: Mapping[str, Any], workload: Mapping[str, Any]) -> None:
        self._path = path
        self.document: dict[str, Any] = {
            "machine": dict(machine),
            "workload": dict(workload),
            "ratios": dict.fromkeys(RATIOS),
            "reasons": dict.fromkeys(RATIOS, "not measured in this run"),
            "steps": {},
            "figures": {},
        }

    def step(self, section: str, key: str, name: str, seconds: Sequence[float]) -> None:
        """What a step of a system took, over the batches."""
        spread = Spread(tuple(second * 1e3 for second in seconds), "ms")
        self.document["steps"].setdefault(section, {})[key] = {"system": name, **spread.to_json()}

    def ratio(self, key: str, values: Sequence[float]) -> None:
        """The median of a ratio's values, one a batch; its extremes stand with the figures."""
        assert key in RATIOS, key
        self.document["ratios"][key] = _short(statistics.median(values))
        self.document["reasons"].pop(key, None)
        if len(values) > 1:
            self.figure("spread of the ratios", key, [_short(min(values)), _short(max(values))])

    def reason(self, key: str, text: str) -> None:
        """Why something is not there."""
        self.document["reasons"][key] = text

    def figure(self, section: str, key: str, value: Any) -> None:
        """Whatever else was measured."""
        self.document["figures"].setdefault(section, {})[key] = _short(value) if isinstance(value, float) else value

    def save(self) -> None:
        """Replace the file in one step, so that a run that is cut off leaves what it has."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.part")
        aside.write_text(json.dumps(self.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self._path)  # noqa: PTH105 (the name says that it replaces)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
