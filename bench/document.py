"""A run's results as one JSON document, replaced on disk as a whole after each section."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Document:
    """What every benchmark writes down alike.

    Args:
        path: Where the JSON goes; None keeps it in memory.
        machine: What it is measured on.
        workload: What is asked for.
        ratios: The ratios that there can be, by key, with their meaning; each is null until it is measured.
    """

    def __init__(
        self, path: Path | None, machine: Mapping[str, Any], workload: Mapping[str, Any], ratios: Mapping[str, str]
    ) -> None:
        self._path, self._began = path, time.monotonic()
        self.document: dict[str, Any] = {
            "machine": dict(machine),
            "workload": dict(workload),
            "seconds": 0,
            "ratios": dict.fromkeys(ratios),
            "reasons": dict.fromkeys(ratios, "not measured in this run"),
            "figures": {},
        }

    def ratio(self, key: str, value: float) -> None:
        """One of the ratios."""
        assert key in self.document["ratios"], key
        self.document["ratios"][key] = short(value)
        self.document["reasons"].pop(key, None)

    def reason(self, key: str, text: str) -> None:
        """Why something is not there: a ratio, or a system."""
        self.document["reasons"][key] = text

    def save(self) -> None:
        """Replace the file in one step, so that a run that is cut off leaves what it has, and how long it took."""
        self.document["seconds"] = round(time.monotonic() - self._began)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.part")
        aside.write_text(json.dumps(self.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self._path)  # noqa: PTH105 (the name says that it replaces)


def short(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
