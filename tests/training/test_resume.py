"""Killed at any instant and resumed, a run ends with the very bytes of one that was left alone."""

import json
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.training.conftest import REVIEWS, write_jsonl
from tests.training.running import SMALL, WEIGHTS, Command, config, flags_of, quiet, run, weights
from training import pipeline
from training.errors import ConfigError, TrainingError
from training.reporting.results import Results, read_results
from training.run import train

Tiny = Callable[[str], Path]
# Dropout, so that random numbers matter; one row too many for whole steps; several rates; products in one way, as
# the faster may be another one from one run to the next on a busy machine.
LONG: dict[str, Any] = {
    **SMALL, "epochs": 6, "dropout": 0.2, "save_every": 2, "schedule": "cosine", "lora_plus": 4, "no_onednn": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "reviews.jsonl", REVIEWS)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    Command(folder, "classify", *settings(tiny, rows, folder)).finish()
    return folder


def settings(tiny: Tiny, rows: Path, folder: Path, **more: Any) -> list[str]:
    return flags_of(**{**LONG, "data": rows, "base": tiny("gpt2"), "output": folder / "run", **more})


def states(folder: Path) -> list[Path]:
    return sorted((folder / "run/checkpoints").glob("step-*"))


def measured(results: Results) -> list[Any]:
    """What a run measured, but for the time that it took."""
    points = [point.model_copy(update={"evaluation_seconds": 0.0}) for point in results.history]
    return [points, results.steps, results.best, results.before, results.after]


def assert_ends_alike(undisturbed: Path, folder: Path) -> None:
    assert weights(folder) == weights(undisturbed)
    expected, found = (read_results(place / "run/results.json") for place in (undisturbed, folder))
    assert measured(found) == measured(expected)
    assert not states(folder)
    assert not list((folder / "run/checkpoints").glob(".writing*"))


def go_on(tiny: Tiny, rows: Path, folder: Path) -> str:
    """As a user would: resume if something was saved."""
    resume = {"resume": True} if states(folder) else {}
    return Command(folder, "classify", *settings(tiny, rows, folder, **resume)).finish()


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_a_random_step(tiny: Tiny, rows: Path, undisturbed: Path, tmp_path: Path, seed: int) -> None:
    last = random.Random(seed).randrange(3, 27)
    process = Command(tmp_path, "classify", *settings(tiny, rows, tmp_path, json=True))
    for event in process.events():
        if event["event"] == "step" and event["step"] == last:
            process.send(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert states(tmp_path)
    assert "going on after step" in go_on(tiny, rows, tmp_path)
    assert_ends_alike(undisturbed, tmp_path)


def _die_at_sync(number: int) -> None:
    """Kill this process at the nth time that it has something written to the disk: amid a checkpoint."""
    left, fsync = [number], os.fsync

    def counted(handle: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = counted


@pytest.mark.parametrize("seed", range(2))
def test_killed_while_it_saves(tiny: Tiny, rows: Path, undisturbed: Path, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(2):
        resume = {"resume": True} if states(tmp_path) else {}
        dying = partial(_die_at_sync, generator.randrange(1, 45))
        process = Command(tmp_path, "classify", *settings(tiny, rows, tmp_path, **resume), before=dying)
        assert process.wait() == -signal.SIGKILL
    go_on(tiny, rows, tmp_path)
    assert_ends_alike(undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_leaves_nothing_half_made_and_says_how_to_go_on(
    tiny: Tiny, rows: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    places = {"publish": "acme/mine", "store": tmp_path / "store", "json": True}
    process = Command(tmp_path, "classify", *settings(tiny, rows, tmp_path, **places))
    for event in process.events():
        if event["event"] == "step" and event["step"] == 7:
            process.send(number)
            break
    assert process.wait() == status
    assert process.stderr.startswith("tenora: stopped; nothing was published; the same command with --output ")
    assert "--resume" in process.stderr
    assert str(tmp_path / "run") in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "run/adapter").exists()
    assert not list((tmp_path / "run/checkpoints").glob(".writing*"))
    go_on(tiny, rows, tmp_path)
    assert_ends_alike(undisturbed, tmp_path)


class _StopError(Exception):
    """Ends a run in this process."""


def unfinished(tiny: Tiny, rows: Path, folder: Path, task: str = "classify", **flags: Any) -> None:
    """A run that ended after its first epoch was saved."""
    from training.loop import Loop

    saved = Loop._save_state

    def save_and_stop(loop: Loop) -> None:
        saved(loop)
        raise _StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_save_state", save_and_stop)
        with pytest.raises(_StopError):
            run(task, folder, data=rows, base=str(tiny("gpt2")), **flags)


def test_what_would_go_wrong_with_a_run_that_is_not_finished(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    unfinished(tiny, rows, tmp_path)
    same: dict[str, Any] = {"data": rows, "base": str(tiny("gpt2"))}
    with pytest.raises(ConfigError, match="holds an unfinished run: go on with --resume, or take another folder"):
        run("classify", tmp_path, **same)
    with pytest.raises(TrainingError, match=r"was another one \(lr: 0\.02 then, 0\.5 now; rank: 2 then, 3 now\)"):
        run("classify", tmp_path, resume=True, **{**same, "lr": 0.5, "rank": 3})
    other = write_jsonl(tmp_path / rows.name, REVIEWS[:-1])
    with pytest.raises(TrainingError, match=r"another one \(data_sha256: '[0-9a-f]+' then, '[0-9a-f]+' now\)"):
        run("classify", tmp_path, resume=True, **{**same, "data": other})
    held_out = write_jsonl(tmp_path / "held_out.jsonl", REVIEWS[:4])
    with pytest.raises(TrainingError, match=r"another one \(.*validation_sha256: None then, '[0-9a-f]+' now"):
        run("classify", tmp_path, resume=True, validation=held_out, **same)
    (state,) = states(tmp_path)
    for name in ("state.json", "state.safetensors", "weights/adapter_model.safetensors"):
        whole = (state / name).read_bytes()
        (state / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            TrainingError, match=rf"the state in {state} cannot be read \(.*\): remove .* and start anew"
        ):
            run("classify", tmp_path, resume=True, **same)
        (state / name).write_bytes(whole)
    # A state from before there were these flags.
    facts = json.loads((state / "state.json").read_text())
    for name in ("prepack", "onednn", "processes"):
        del facts["identity"][name]
    (state / "state.json").write_text(json.dumps(facts))
    tensors = load_file(state / "state.safetensors")
    tensors["random.cpu"] = tensors.pop("random.0.cpu")
    save_file(tensors, state / "state.safetensors")
    run("classify", tmp_path, resume=True, **same)
    with pytest.raises(ConfigError, match=r"--resume: .* holds no run that was saved and did not finish"):
        train(config("classify", tmp_path, resume=True, **same), quiet())


@pytest.mark.usefixtures("bf16_kernels")
def test_instructions_in_bfloat16_go_on_too(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"dtype": "bfloat16", "dropout": 0.1, "epochs": 3}
    run("instruct", tmp_path / "whole", data=instructions, base=str(tiny("gpt2")), **flags)
    unfinished(tiny, instructions, tmp_path / "broken", "instruct", **flags)
    assert states(tmp_path / "broken")
    run("instruct", tmp_path / "broken", data=instructions, base=str(tiny("gpt2")), resume=True, **flags)
    found, expected = (tmp_path / name / "run/checkpoints/epoch-3" / WEIGHTS for name in ("broken", "whole"))
    assert found.read_bytes() == expected.read_bytes()


def test_stopped_after_it_published(tiny: Tiny, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said then is not that nothing was."""

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "tell", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run("classify", tmp_path, data=rows, base=str(tiny("gpt2")), publish="acme/mine")
    assert stopped.value.args == ("acme/mine was published before", f"what was trained is in {tmp_path / 'run'}")


def test_stopped_while_it_writes(tiny: Tiny, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is saved by then, so it need not be trained again."""

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_beside", stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run("classify", tmp_path, data=rows, base=str(tiny("gpt2")))
    assert stopped.value.args[0] == "nothing was published"
    assert "--resume goes on" in stopped.value.args[1]
    assert not (tmp_path / "run/adapter").exists()
    run("classify", tmp_path, data=rows, base=str(tiny("gpt2")), resume=True)
    assert weights(tmp_path)


def test_a_run_over_all_weights_goes_on_too(tiny: Tiny, tmp_path: Path, texts: Path) -> None:
    """Its optimiser and weights are saved by other ways than an adapter's."""
    flags = {**SMALL, "data": texts, "base": tiny("llama"), "update": "full", "answers": 0, "lr": 1e-3, "batch_size": 2}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Command(whole, "text", *flags_of(**flags, output=whole / "run")).finish()
    process = Command(
        broken, "text", *flags_of(**flags, save_every=1, output=broken / "run"), before=partial(_die_at_sync, 14)
    )
    assert process.wait() == -signal.SIGKILL
    assert states(broken)
    Command(broken, "text", *flags_of(**flags, save_every=1, output=broken / "run", resume=True)).finish()
    assert (broken / "run/base/model.safetensors").read_bytes() == (whole / "run/base/model.safetensors").read_bytes()
