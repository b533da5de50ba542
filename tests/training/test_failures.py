"""Full disks, files that cannot be read, missing extras: one sentence, status 2, and nothing half-made."""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.running import SMALL, Command, flags_of, run
from training.errors import TrainingError

Tiny = Callable[[str], Path]


def _no_file_above(size: int) -> None:
    """The kernel refuses to write more than ``size`` bytes into any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _full_disk(folder: str, room: int) -> None:
    """Writes into files below ``folder`` fail, as on a full disk, once ``room`` bytes have been written there."""
    left, write_text = [room], Path.write_text

    def counted(path: Path, text: str, *args: Any, **options: Any) -> int:
        left[0] -= len(text) if str(path).startswith(folder) else 0
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, text, *args, **options)

    Path.write_text = counted  # type: ignore[method-assign]


def failed(folder: Path, base: Path, data: Path, before: Callable[[], None]) -> str:
    """The one line that a run says of its failure."""
    places = flags_of(output=folder / "run", store=folder / "store", publish="acme/mine", answers=0)
    process = Command(folder / "said", "instruct", *flags_of(**SMALL, data=data, base=base), *places, before=before)
    assert process.wait() == 2, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("tenora: ")
    assert not (folder / "store/acme").exists()
    return process.stderr


def test_a_checkpoint_that_does_not_fit(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    line = failed(tmp_path, tiny("gpt2"), instructions, partial(_no_file_above, 8_192))
    assert "the checkpoint" in line
    assert "epoch-1 cannot be written: " in line
    assert "File too large" in line
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_a_disk_that_is_full_when_the_state_is_saved(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    line = failed(tmp_path, tiny("gpt2"), instructions, partial(_full_disk, str(tmp_path / "run/checkpoints"), 100))
    assert "cannot be written: No space left on device" in line
    assert not list((tmp_path / "run/checkpoints").glob(".writing*"))


def test_a_disk_that_is_full_when_the_report_is_written(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    full = partial(_full_disk, str(tmp_path / "run/.writing-adapter"), 3_000)
    assert "No space left on device" in failed(tmp_path, tiny("gpt2"), instructions, full)
    assert not list((tmp_path / "run").glob("*adapter*"))


def test_data_that_cannot_be_read(tiny: Tiny, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none.jsonl", "cannot be read: No such file or directory"),
        (tmp_path / "rows.docx", "unknown kind of file"),
    ):
        with pytest.raises(TrainingError, match=words):
            run("instruct", tmp_path, data=path, base=str(tiny("gpt2")))
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b'{"instruction": "\xff\xfe"}\n')
    with pytest.raises(TrainingError, match=r"broken\.jsonl"):
        run("instruct", tmp_path, data=broken, base=str(tiny("gpt2")))


def test_an_output_that_is_a_file(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(TrainingError, match=r"--output .*run: File exists"):
        run("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")))


def test_a_missing_extra_is_named(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(TrainingError, match=r"peft is not installed: pip install 'tenora\[train\]'"):
            run("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(TrainingError, match=r"--tensorboard needs .*: pip install 'tenora\[tensorboard\]'"):
            run("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), tensorboard=True)
