"""Archives of strangers: whatever is in them, one kind of refusal, and no more memory or disk than was said."""

import gzip
import io
import random
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from adapters.archive import unpack
from adapters.errors import AdapterFormatError

WEIGHTS = (20).to_bytes(8, "little") + b'{"__metadata__":{}} ' + bytes(300)
FILES = {"adapter_config.json": b'{"r": 1}', "adapter_model.safetensors": WEIGHTS, "README.md": b"words " * 400}


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


def tarred(files: dict[str, bytes], mode: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), {"comment": "ü"}
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


SEEDS = (
    zipped(FILES),
    tarred(FILES, "w:gz"),
    tarred(FILES, "w"),
    tarred({"x" * 120 + "/README.md": b"long"}, "w", tarfile.GNU_FORMAT),
)


def unpacked(data: bytes, folder: Path, most: int = 1 << 20) -> dict[str, bytes]:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    (folder / "archive").write_bytes(data)
    unpack(folder / "archive", folder / "files", most=most)
    return {path.name: path.read_bytes() for path in (folder / "files").iterdir()}


@pytest.mark.parametrize("data", SEEDS[:3])
def test_what_is_packed_comes_out(data: bytes, tmp_path: Path) -> None:
    assert unpacked(data, tmp_path / "a") == FILES


@pytest.mark.parametrize("seed", SEEDS, ids=["zip", "tar.gz", "tar", "gnu"])
def test_damage_is_refused_or_harmless(seed: bytes, tmp_path: Path) -> None:
    chance = random.Random(5)
    for _ in range(150):
        data = bytearray(seed)
        for _ in range(chance.choice((1, 2, 5, 30))):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    del data[at + 1 :]
                case 1:
                    data[at : at + 8] = chance.choice((b"\xff" * 8, b"\x80" + bytes(7), b"77777777", b"-1000000"))
                case _:
                    data[at] = chance.randrange(256)
        try:
            names = set(unpacked(bytes(data), tmp_path / "a"))
        except AdapterFormatError as error:
            assert error.key is not None
            names = {path.name for path in (tmp_path / "a" / "files").iterdir()}
        assert names <= set(FILES) | {"report.json"}


def test_a_name_that_is_empty(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"x"}))
    at = data.index(b"PK\x01\x02")
    data[at + 28 : at + 30] = bytes(2)  # the name's length in the archive's directory
    del data[at + 46]
    end = data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = (end - at).to_bytes(4, "little")
    with pytest.raises(AdapterFormatError):
        unpacked(bytes(data), tmp_path / "a")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_inflate_without_end(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, 1 << 30
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="w", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(AdapterFormatError, match="tables are too large"):
            unpacked(bomb.getvalue(), tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_is_cut_off_where_it_exceeds(tmp_path: Path) -> None:
    for data in (zipped(FILES | {"0.png": bytes(10**6)}), tarred(FILES | {"0.png": bytes(10**6)}, "w:gz")):
        with pytest.raises(AdapterFormatError, match="100000 bytes"):
            unpacked(data, tmp_path / "a", most=100_000)
        assert sum(path.stat().st_size for path in (tmp_path / "a" / "files").iterdir()) <= 100_000
