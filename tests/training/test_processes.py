"""Two processes train as one does, and one of them writes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.running import ROOT, SMALL, WEIGHTS, Command, flags_of, run
from tests.training.served import published
from training import pipeline
from training.loop import Loop
from training.processes import Processes, join_processes
from training.reporting.results import read_results

Tiny = Callable[[str], Path]


def test_two_processes_have_the_losses_of_one(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    """gloo between two processes on the CPU; the last step of an epoch has fewer rows than the others."""
    settings: dict[str, Any] = {**SMALL, "data": reviews, "base": str(tiny("llama")), "batch_size": 7, "save_every": 3}
    alone = run("classify", tmp_path / "alone", **settings)
    flags = flags_of(**settings, output=tmp_path / "run", store=tmp_path / "store", publish="acme/mine")
    first, other = two(tmp_path, "classify", *flags)
    said, nothing = first.finish(), other.finish()
    assert [(tmp_path / f"process-{index}/backend").read_text() for index in range(2)] == ["gloo", "gloo"]
    together = read_results(tmp_path / "run/results.json")
    assert len(together.steps) == len(alone.steps)
    assert [step.loss for step in together.steps] == pytest.approx([step.loss for step in alone.steps], abs=1e-5)
    assert together.after.metrics == pytest.approx(alone.after.metrics, abs=1e-4)
    expected = load_file(tmp_path / "alone/run/adapter" / WEIGHTS)
    for name, found in load_file(tmp_path / "run/adapter" / WEIGHTS).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5)
    assert (said.count("published acme/mine@"), nothing) == (1, "")
    assert published(tmp_path).digest in str(together.published)
    assert said.count("before: train loss") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_of_a_launcher_have_the_losses_of_one(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
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


def _launched(index: int, port: int, backend: Path, waits_after: int) -> None:
    """What a launcher tells one of two processes; the backend that they meet by is written down."""
    places = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update(
        {name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1"
    )

    def joined(device: torch.device) -> Processes:
        processes = join_processes(device)
        backend.write_text(torch.distributed.get_backend())
        return processes

    pipeline.join_processes = joined  # type: ignore[attr-defined]
    if waits_after:
        _after(waits_after, signal.pause)


def two(folder: Path, task: str, *flags: str, waits_after: int = 0) -> list[Command]:
    """Two processes that train together, the first of which speaks; they may wait for ever after some step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [folder / f"process-{index}" for index in range(2)]
    return [
        Command(own, task, *flags, before=partial(_launched, index, port, own / "backend", waits_after))
        for index, own in enumerate(folders)
    ]


@pytest.mark.usefixtures("bf16_kernels")
def test_two_processes_in_bfloat16_with_accumulation(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    """By the compiled kernels, which sum in another order; 2 x 2 x 2 rows a step as 8 in one."""
    settings: dict[str, Any] = {**SMALL, "data": instructions, "base": str(tiny("llama")), "lr": 0.005, "answers": 0}
    settings |= {"dtype": "bfloat16", "epochs": 3}
    alone = run("instruct", tmp_path / "alone", **settings)
    settings |= {"batch_size": 4, "accumulate": 2, "output": tmp_path / "run"}
    for process in two(tmp_path, "instruct", *flags_of(**settings)):
        process.finish()
    assert [(tmp_path / f"process-{index}/backend").read_text() for index in range(2)] == ["gloo", "gloo"]
    together = read_results(tmp_path / "run/results.json")
    assert [step.loss for step in together.steps] == pytest.approx([step.loss for step in alone.steps], rel=0.01)
    expected, found = (
        torch.cat([part.flatten() for part in load_file(folder / "run/adapter" / WEIGHTS).values()])
        for folder in (tmp_path / "alone", tmp_path)
    )
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_two_processes_that_are_killed_go_on(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    """Both at the same step; each loss and the last weights are those of two that were left alone.

    With dropout, of which each draws its own.
    """
    settings: dict[str, Any] = {**SMALL, "data": reviews, "base": tiny("gpt2"), "epochs": 4, "save_every": 2}
    settings |= {"dropout": 0.2, "no_onednn": True}  # or what is measured on a busy machine may differ
    for process in two(tmp_path / "whole", "classify", *flags_of(**settings, output=tmp_path / "whole/run")):
        process.finish()
    cut = flags_of(**settings, output=tmp_path / "cut/run")
    first, other = two(tmp_path / "cut", "classify", *cut, "--json", waits_after=9)
    for event in first.events():
        if event["event"] == "step" and event["step"] == 9:
            first.send(signal.SIGKILL)
            other.send(signal.SIGKILL)
            break
    assert (first.wait(), other.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    said = [process.finish() for process in two(tmp_path / "cut", "classify", *cut, "--resume")]
    assert "going on after step" in said[0]
    assert said[1] == ""
    whole, found = (read_results(tmp_path / name / "run/results.json") for name in ("whole", "cut"))
    assert found.steps == whole.steps
    last, expected = (tmp_path / name / "run/checkpoints/epoch-4" / WEIGHTS for name in ("cut", "whole"))
    assert last.read_bytes() == expected.read_bytes()


def test_another_number_of_processes_does_not_go_on(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    flags = flags_of(**SMALL, data=reviews, base=tiny("gpt2"), output=tmp_path / "run")
    assert Command(tmp_path, "classify", *flags, "--save-every", "1", before=partial(_after, 3, _stop)).wait() == 130
    both = two(tmp_path, "classify", *flags, "--save-every", "1", "--resume")
    assert [process.wait() for process in both] == [2, 2]
    assert "another one (processes: 1 then, 2 now)" in both[0].stderr


def _stop() -> None:
    """As by ^C."""
    raise KeyboardInterrupt


def _after(step: int, then: Callable[[], object]) -> None:
    """Do something once a step was taken."""
    take = Loop._take_step

    def taken(loop: Loop) -> None:
        take(loop)
        if loop._done == step:
            then()

    Loop._take_step = taken  # type: ignore[method-assign]


def test_one_of_two_that_dies_ends_the_other(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    """It does not wait for ever, and publishes nothing."""
    flags = flags_of(**{**SMALL, "epochs": 40}, data=reviews, base=tiny("gpt2"), output=tmp_path / "run")
    first, other = two(tmp_path, "classify", *flags, "--publish", "acme/mine", "--store", str(tmp_path / "s"), "--json")
    for event in first.events():
        if event["event"] == "step" and event["step"] == 3:
            other.send(signal.SIGKILL)
            break
    assert first.wait() == 2, first.stderr
    assert first.stderr.startswith("tenora: the processes of this run have lost one another"), first.stderr
    assert not (tmp_path / "s/acme").exists()
