"""Two processes train as one does, and one of them writes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.running import ROOT, SMALL, WEIGHTS, flags_of, run
from tests.training.served import published
from training.reporting.results import read_results

Tiny = Callable[[str], Path]


def test_two_processes_have_the_losses_of_one(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    """gloo between two processes on the CPU; the last step of an epoch has fewer rows than the others."""
    settings: dict[str, Any] = {**SMALL, "data": reviews, "base": str(tiny("llama")), "batch_size": 7, "save_every": 3}
    alone = run("classify", tmp_path / "alone", **settings)
    flags = flags_of(**settings, store=tmp_path / "store", publish="acme/mine")
    # No --output: the folder is named by the clock, and both must take the same.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--module", "training", "classify", *flags),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "build/runs").iterdir()
    together = read_results(folder / "results.json")
    assert len(together.steps) == len(alone.steps)
    assert [step.loss for step in together.steps] == pytest.approx([step.loss for step in alone.steps], abs=1e-5)
    assert together.after.metrics == pytest.approx(alone.after.metrics, abs=1e-4)
    expected = load_file(tmp_path / "alone/run/adapter" / WEIGHTS)
    for name, found in load_file(folder / "adapter" / WEIGHTS).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5)
    assert done.stdout.count("published acme/mine@") == 1
    assert published(tmp_path).digest in str(together.published)
    assert done.stdout.count("before: train loss") == 1
