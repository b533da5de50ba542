"""Reads the handwritten material: text files of sections, `[name]` and one entry a line, `#` for comments."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "material"


@cache
def sections(file: str) -> dict[str, tuple[str, ...]]:
    """All sections of a material file, by name, in the order written."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate((FOLDER / file).read_text(encoding="ascii").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("[") and text.endswith("]"):
            if text[1:-1] in found:
                raise ValueError(f"{file}, line {number}: the section {text} stands twice")
            current = found.setdefault(text[1:-1], [])
        elif current is None:
            raise ValueError(f"{file}, line {number}: an entry before the first [section]")
        else:
            current.append(text)
    return {name: tuple(lines) for name, lines in found.items()}


def entries(file: str, section: str) -> tuple[str, ...]:
    """The lines of one section."""
    return sections(file)[section]


def split(line: str, mark: str) -> list[str]:
    """The parts of a line between marks, without the blanks around them."""
    return [part.strip() for part in line.split(mark)]
