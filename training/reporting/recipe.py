"""A run's settings as people read them."""

import re
from collections.abc import Mapping

from pydantic import JsonValue

_TOLD_ELSEWHERE = ("task", "base", "validation_split", "test_split", "sentences", "sentence_labels")
_ABSOLUTE = re.compile(r"(/|~|[A-Za-z]:[\\/])")


def settings(recipe: Mapping[str, JsonValue]) -> dict[str, str]:
    """{setting: value} of all that was set, but for what the report tells elsewhere; files go by their names."""
    return {
        name.replace("_", " "): _written(value)
        for name, value in recipe.items()
        if name not in _TOLD_ELSEWHERE and value is not None and value not in ([], "")
    }


def _written(value: JsonValue) -> str:
    if isinstance(value, list):
        return ", ".join(_written(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return re.split(r"[\\/]", text)[-1] if _ABSOLUTE.match(text) else text
