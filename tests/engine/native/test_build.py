"""Compiling: once, whole or not at all, and without a compiler the engine computes with torch."""

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters.native import build, library
from adapters.native.build import BuildError
from service.engine.kernels import choose_kernels
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation

pytestmark = pytest.mark.usefixtures("afresh")
NAME = "kernels-of-this-test.so"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a library that nobody has compiled before."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(build, "library_name", lambda: NAME)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that loads; whatever is written behind its end does it no harm."""
    made = tmp_path_factory.mktemp("tiny") / "tiny.so"
    real = next(filter(None, map(shutil.which, build.COMPILERS)), None)
    if real is None:
        pytest.skip("there is no C compiler on this machine")
    command = [real, "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", str(made)]
    subprocess.run(command, input="int one(void) { return 1; }", check=True, text=True, timeout=60)
    with made.open("ab") as file:
        file.write(b"\n")
    return made


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler of the test's own, the only one on the PATH; it still has to be written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / "cc"


def write_compiler(path: Path, script: str) -> None:
    """``$out`` is where the output goes."""
    path.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\nwhile [ "$1" != -o ]; do shift; done\nout=$2\n{script}\n')
    path.chmod(0o755)


def last_lines(path: Path, count: int = 1) -> list[bytes]:
    """What a compiler of ours wrote behind a library."""
    return path.read_bytes().splitlines()[-count:]


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("kernels-*"))


def test_without_a_compiler_torch_computes_and_one_warning_says_so(
    llama: Zoo, home: Path, compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = drain(llama.engine(kernels="torch"), generation("r", llama.ids("the fox"), llama.adapters["wide"]))["r"]
    engines = [llama.engine(kernels="auto") for _ in range(2)]
    assert [engine.kernels for engine in engines] == ["torch", "torch"]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "no C compiler (gcc, cc, clang)" in warnings[0].getMessage()
    found = drain(engines[0], generation("r", llama.ids("the fox"), llama.adapters["wide"]))["r"]
    assert found.tokens == want.tokens
    assert not libraries(home)


def test_native_is_refused_where_it_cannot_be_had(llama: Zoo, home: Path, compiler: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"kernels 'native' .* C compiler.*--kernels auto") as caught:
            llama.engine(kernels="native")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo kernels.c:1: no such intrinsic >&2; exit 1", "no such intrinsic"),
        ("exit 1", "cc failed"),
        ("kill -9 $$", "cc failed"),
        ("echo half > $out; exit 1", "cc failed"),
        ("exit 0", "kernels.so"),  # it says that it has worked
        ("echo no library at all > $out", "cc made does not load"),
    ],
)
def test_a_broken_compiler_is_as_good_as_none(
    home: Path, compiler: Path, caplog: pytest.LogCaptureFixture, script: str, reason: str
) -> None:
    write_compiler(compiler, script)
    assert library.load_library() is None
    assert not library.supports(torch.float32)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert re.search(reason, caplog.text)
    assert choose_kernels("auto", torch.float32, torch.device("cpu"), slots=1, max_rank=8).name == "torch"


def test_a_compiler_that_hangs_is_given_up(home: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TIMEOUT_S", 0.3)
    write_compiler(compiler, "exec sleep 30")
    with pytest.raises(BuildError, match="timed out"):
        build.find_or_build()
    assert not libraries(home)


def test_a_cache_that_cannot_be_written_costs_the_kernels_only(
    home: Path, compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_compiler(compiler, "exit 1")
    (home / ".cache").write_text("a file where the folder should be")
    assert library.load_library() is None
    assert "cannot be written" in caplog.text


def test_a_user_without_a_home_computes_with_torch(
    home: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that runs under a user id that nobody has named."""
    import pwd

    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert library.load_library() is None
    assert "no home" in caplog.text


def test_another_users_library_is_not_loaded(
    home: Path, compiler: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_compiler(compiler, f"cp {tiny} $out; echo ours >> $out")
    theirs = build.cache_folder() / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs\n")
    if os.getuid() == 0:
        os.chown(theirs, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert last_lines(build.find_or_build()) == [b"ours"]


def test_a_library_of_ours_is_compiled_once(home: Path, compiler: Path, tiny: Path) -> None:
    write_compiler(compiler, f"echo compiled >> {home}/calls; cp {tiny} $out")
    first, second = build.find_or_build(), build.find_or_build()
    assert first == second == home / ".cache" / "tenora" / NAME
    assert (home / "calls").read_text().splitlines() == ["compiled"] * 2  # the object, the library
    assert libraries(home) == [first]


def test_a_compiler_whose_library_does_not_load_is_passed_over(home: Path, compiler: Path, tiny: Path) -> None:
    """As clang's, which asks for an OpenMP runtime that is not torch's."""
    write_compiler(compiler.with_name("gcc"), "echo broken >&2; exit 1")
    write_compiler(compiler, "echo no library at all > $out")
    with pytest.raises(BuildError, match=r"gcc failed: broken; what .*/cc made does not load: .*"):
        build.find_or_build()
    assert not libraries(home)
    write_compiler(compiler.with_name("clang"), f"cp {tiny} $out; echo clangs >> $out")
    assert last_lines(build.find_or_build()) == [b"clangs"]


def test_a_compiler_of_two_names_is_tried_once(home: Path, compiler: Path) -> None:
    write_compiler(compiler, f"echo tried >> {home}/calls; exit 1")
    compiler.with_name("gcc").symlink_to(compiler)
    with pytest.raises(BuildError, match="failed"):
        build.find_or_build()
    assert (home / "calls").read_text().splitlines() == ["tried"]


def test_nobody_sees_half_a_library(home: Path, compiler: Path, tiny: Path) -> None:
    """What is being written has another name in a folder of its own until it is whole."""
    seen = home / "seen"
    write_compiler(compiler, f'cp {tiny} $out; ls {home}/.cache/tenora >> {seen}; echo " and half" >> $out')
    made = build.find_or_build()
    assert last_lines(made) == [b" and half"]
    assert NAME not in seen.read_text().split()
    assert [entry.name for entry in made.parent.iterdir()] == [NAME]


def test_what_a_killed_build_left_behind_is_in_nobodys_way(home: Path, compiler: Path, tiny: Path) -> None:
    write_compiler(compiler, "echo half > $out; kill -9 $PPID; sleep 5")
    script = (
        "from adapters.native import build\n"
        f"build.library_name = lambda: {NAME!r}\n"
        "build.find_or_build()\n"
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -9
    assert not libraries(home)
    write_compiler(compiler, f"cp {tiny} $out; echo whole >> $out")
    assert last_lines(build.find_or_build()) == [b"whole"]


def test_two_processes_that_compile_at_once_both_get_it(home: Path, compiler: Path, tiny: Path) -> None:
    """Each waits until the other is compiling too."""
    write_compiler(
        compiler,
        f"touch {home}/$$.started; for i in $(seq 100); do "
        f"[ $(ls {home}/*.started | wc -l) -ge 2 ] && break; sleep 0.1; done; cp {tiny} $out",
    )
    script = (
        "from adapters.native import build\n"
        f"build.library_name = lambda: {NAME!r}\n"
        f"assert build.find_or_build().read_bytes() == open({str(tiny)!r}, 'rb').read()\n"
    )
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, cwd=Path(__file__).parents[3]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list(home.glob("*.started"))) == 4
    assert [entry.name for entry in (home / ".cache" / "tenora").iterdir()] == [NAME]


def test_compiling_ahead_of_time_into_a_folder(tmp_path: Path, compiled: None) -> None:
    command = [sys.executable, "-m", "adapters.native.build", str(tmp_path / "new" / "folder")]
    root = Path(__file__).parents[3]
    printed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=110).stdout.strip()
    assert printed == str(tmp_path / "new" / "folder" / build.library_name())
    assert ctypes.CDLL(printed).tenora_has_bf16() in (0, 1)


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library_name()
    changed = tmp_path / "kernels.c"
    changed.write_text(build.SOURCE.read_text() + "\n")
    monkeypatch.setattr(build, "SOURCE", changed)
    assert build.library_name() != before
    assert build.library_name().endswith(".so")


def test_ranks_beyond_the_kernels_are_torchs(compiled: None) -> None:
    cpu = torch.device("cpu")
    assert choose_kernels("auto", torch.float32, cpu, slots=1, max_rank=library.MAX_RANK).name == "native"
    assert choose_kernels("auto", torch.float32, cpu, slots=1, max_rank=library.MAX_RANK + 1).name == "torch"
    with pytest.raises(ValueError, match="1024"):
        choose_kernels("native", torch.float32, cpu, slots=1, max_rank=library.MAX_RANK + 1)


def test_a_cpu_without_bfloat16_computes_in_it_with_torch(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.load_library(), "tenora_has_bf16", lambda: 0)
    cpu = torch.device("cpu")
    assert choose_kernels("auto", torch.bfloat16, cpu, slots=1, max_rank=8).name == "torch"
    assert choose_kernels("auto", torch.float32, cpu, slots=1, max_rank=8).name == "native"
    with pytest.raises(ValueError, match="AVX512-BF16"):
        choose_kernels("native", torch.bfloat16, cpu, slots=1, max_rank=8)


def test_a_name_of_no_kernels_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, torch or native, not 'cuda-graphs'"):
        choose_kernels("cuda-graphs", torch.float32, torch.device("cpu"), slots=1, max_rank=8)
