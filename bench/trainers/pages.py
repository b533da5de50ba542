"""The results as tables and a picture, made from the JSON document alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.markdown import table
from bench.trainers.findings import LESS_IS_BETTER, RATIOS

Document = Mapping[str, Any]
_TIMES = 0.01
"""Below it a figure is no ratio of times and is written with its power of ten."""


def render(document: Document) -> str:
    """Everything that was measured, and why the rest was not."""
    parts = [_conditions(document), _ratios(document), *_steps(document), *_figures(document), _absent(document)]
    return "\n\n".join(part for part in parts if part)


def draw(document: Document, folder: Path) -> list[Path]:
    """Bars of the milliseconds that were taken, for each section that has them."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from bench.plots import OURS, THEIRS

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for section, systems in document["steps"].items():
        rows = list(reversed(systems.values()))
        figure, axes = plt.subplots(figsize=(8, 0.9 + 0.36 * len(rows)), layout="constrained")
        medians = [row["median"] for row in rows]
        spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
        ours = [OURS if row["system"].startswith(("Tenora", "all")) else THEIRS for row in rows]
        axes.barh([row["system"] for row in rows], medians, xerr=spread, color=ours, ecolor="#666666")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{section}: milliseconds", loc="left", fontsize=10)
        drawn.append(folder / f"training_{section.replace(', ', '_')}.png")
        figure.savefig(drawn[-1], dpi=130)
        plt.close(figure)
    return drawn


def _conditions(document: Document) -> str:
    machine = document["machine"]
    names = ("tenora", "python", "torch", "transformers", "peft", "trl")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions']) or 'no wide instructions'}), "
        f"{machine['threads']} threads, {machine['memory_gib']} GiB, {machine['system']}; {versions}. "
        f"Load before the run: {machine['load_before']}. Our float32 products: {machine.get('float32_matmul')}. "
        f"Medians of {document['workload']['rounds']} batches, systems in turns."
    )


def _ratios(document: Document) -> str:
    spreads = document["figures"].get("spread of the ratios", {})
    rows = []
    for key, meaning in RATIOS.items():
        spread = spreads.get(key)
        between = "" if spread is None else f"{_shown(spread[0])}–{_shown(spread[1])}"
        better = "less" if key in LESS_IS_BETTER else "more"
        rows.append((f"`{key}`", meaning, _shown(document["ratios"][key]), between, better))
    return table(("ratio", "what", "value", "lowest–highest", "better"), rows, right=2)


def _steps(document: Document) -> Iterable[str]:
    for section, systems in document["steps"].items():
        rows = [
            (row["system"], f"{row['median']:,.0f}", f"{row['low']:,.0f}–{row['high']:,.0f}")
            for row in systems.values()
        ]
        yield f"**{section}**\n\n{table(('ms', 'median', 'lowest–highest'), rows)}"


def _figures(document: Document) -> Iterable[str]:
    for section, figures in document["figures"].items():
        if section != "spread of the ratios":
            rows = [(name, _shown(value)) for name, value in figures.items()]
            yield f"**{section}**\n\n{table(('figure', 'value'), rows)}"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.1e}" if 0 < abs(value) < _TIMES else f"{value:,.4g}"


def _absent(document: Document) -> str:
    if not document["reasons"]:
        return ""
    return "Not there:\n\n" + "\n".join(f"- `{key}`: {reason}" for key, reason in document["reasons"].items())
