"""The committed files as rows, and a text taken apart."""

import json
import re
from collections.abc import Iterator

from examples.generator.rows import normalise
from examples.make_examples import FOLDER


def read(name: str) -> list[dict[str, str]]:
    """The rows of one example file."""
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def sentences(text: str) -> Iterator[str]:
    """Its sentences of three words and more, normalised."""
    for part in re.split(r"(?<=[.!?:])\s+", text):
        if len(normalise(part).split()) >= 3:
            yield normalise(part)
