"""Runs on a GPU, against the same runs on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.running import run
from tests.training.served import published
from training.loop import Loop

Tiny = Callable[[str], Path]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BASES = {"instruct": "llama", "classify": "distilbert", "text": "gpt2", "reward": "llama"}


def settings(tiny: Tiny, data_of: dict[str, Path], task: str, **more: Any) -> dict[str, Any]:
    return {
        "data": data_of[task],
        "base": str(tiny(BASES[task])),
        "epochs": 2,
        "lr": 0.005,
        "base_dropout": 0.0,
        **more,
    }


@pytest.mark.parametrize("task", BASES)
def test_the_losses_are_those_of_the_cpu(tiny: Tiny, data_of: dict[str, Path], tmp_path: Path, task: str) -> None:
    flags = settings(tiny, data_of, task, publish="acme/mine")
    expected = run(task, tmp_path / "cpu", **flags)
    found = run(task, tmp_path / "gpu", **flags, device="cuda")
    assert found.device == "cuda"
    assert [step.loss for step in found.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-3)
    # Published, so it answered as the trained model when it was read back.
    assert published(tmp_path / "gpu").manifest.task == published(tmp_path / "cpu").manifest.task


@pytest.mark.parametrize("task", ["instruct", "classify"])
def test_bfloat16_is_near(tiny: Tiny, data_of: dict[str, Path], tmp_path: Path, task: str) -> None:
    flags = settings(tiny, data_of, task)
    expected = run(task, tmp_path / "cpu", **flags)
    found = run(task, tmp_path / "gpu", **flags, device="cuda", dtype="bfloat16", publish="acme/mine")
    assert found.precision.startswith("bfloat16")
    assert [step.loss for step in found.steps] == pytest.approx([step.loss for step in expected.steps], rel=0.05)


def test_a_run_that_stopped_goes_on(tiny: Tiny, data_of: dict[str, Path], tmp_path: Path) -> None:
    """With dropout, so the GPU's random numbers have to go on too."""
    flags = settings(tiny, data_of, "classify", device="cuda", dropout=0.2)
    whole = run("classify", tmp_path / "whole", **flags)
    saved = Loop._save_state

    def save_and_stop(loop: Loop) -> None:
        saved(loop)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run("classify", tmp_path / "cut", **flags)
    resumed = run("classify", tmp_path / "cut", **flags, resume=True)
    assert [step.loss for step in resumed.steps] == pytest.approx([step.loss for step in whole.steps], rel=1e-4)
