"""The results as a page of tables, made from the JSON document alone.

python -m bench.markdown results.json
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.report import LESS_IS_BETTER, RATIOS

Document = Mapping[str, Any]


def render(document: Document) -> str:
    """Everything that was measured, and why the rest was not."""
    parts = (_conditions(document), _ratios(document), _rates(document), *_figures(document), _absent(document))
    return "\n\n".join(part for part in parts if part)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: int = 1) -> str:
    """A Markdown table; columns from ``right`` on are numbers."""
    lines = [head, tuple("---:" if column >= right else "---" for column in range(len(head))), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _conditions(document: Document) -> str:
    machine, workload = document["machine"], document["workload"]
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("tenora", "python", "torch", "transformers", "peft", "llama.cpp")
        if machine.get(name)
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions']) or 'no wide instructions'}), "
        f"{machine['threads']} threads, {machine['memory_gib']} GiB, {machine['system']}; {versions}. "
        f"Load before the run: {machine['load_before']}.\n\n"
        f"Shape {workload['shape']}, {workload['dtype']}; {workload['at_once']} requests at once, rank "
        f"{workload['rank']} on {workload['targets']}, {workload['prompt_tokens']} tokens in, {workload['new_tokens']} "
        f"out ({workload['sampling']}); medians of {workload['rounds']} rounds or fewer, systems in turns; "
        f"{document['seconds'] / 60:.1f} minutes."
    )


def _ratios(document: Document) -> str:
    rows = []
    for key, meaning in RATIOS.items():
        value = document["ratios"][key]
        shown = "–" if value is None else f"{value:.2f}"
        better = "less" if key in LESS_IS_BETTER else "more"
        rows.append((f"`{key}`", meaning, shown, better))
    return table(("ratio", "what", "value", "better"), rows, right=2)


def _rates(document: Document) -> str:
    rows = [
        (
            rate["system"],
            f"{rate['median']:,.0f}",
            f"{rate['low']:,.0f}–{rate['high']:,.0f}",
            str(rate["rounds"]),
            rate["unit"],
        )
        for rate in document["rates"].values()
    ]
    return table(("system", "median", "lowest–highest", "rounds", "unit"), rows) if rows else ""


def _figures(document: Document) -> Iterable[str]:
    for section, figures in document["figures"].items():
        rows = [(f"`{name}`", _shown(value)) for name, value in figures.items()]
        yield f"**{section}**\n\n{table(('figure', 'value'), rows)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "<br>".join(_shown(item) for item in value) if value and isinstance(value[0], dict) else str(value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _absent(document: Document) -> str:
    if not document["reasons"]:
        return ""
    return "Not there:\n\n" + "\n".join(f"- `{key}`: {reason}" for key, reason in document["reasons"].items())


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
