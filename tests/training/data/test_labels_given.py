"""Labels whose names are digits: what a row says is a name before it is an index."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.dataset import read_dataset


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize(("labels", "expected"), [(("1", "2", "3"), [0, 1, 2]), (("3", "1", "2"), [1, 2, 0])])
def test_a_name_goes_before_an_index(tmp_path: Path, suffix: str, labels: tuple[str, ...], expected: Any) -> None:
    file = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        file.write_text("text,label\n" + "".join(f"text {number},{number}\n" for number in (1, 2, 3)))
    else:
        file.write_text("".join(json.dumps({"text": f"text {n}", "label": n}) + "\n" for n in (1, 2, 3)))
    rows = read_dataset("classify", {"data": file}, labels=labels).parts["data"]
    assert [row.labels[0] for row in rows] == expected
