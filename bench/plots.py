"""The results as pictures, made from the JSON document alone.

python -m bench.plots results.json plots/
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Document = Mapping[str, Any]
OURS, THEIRS, THIRD, FOURTH, GRAY = "#0b6e99", "#c08a3e", "#8a4f7d", "#5b8c3a", "#666666"
_STYLE = {
    "figure.dpi": 130,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}
_STANDARD = ("tenora_http", "tenora_engine", "llamacpp", "peft", "transformers")


def draw(document: Document, folder: Path) -> list[Path]:
    """Draw whatever the document has figures for."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Document], bool]] = {
        "systems": _systems,
        "adapters": _adapters,
        "bystander": _bystander,
        "cliff": _cliff,
        "popularity": _popularity,
    }
    drawn = []
    with plt.rc_context(_STYLE):
        for name, drawing in drawings.items():
            if drawing(document):
                drawn.append(folder / f"{name}.png")
                plt.savefig(drawn[-1])
            plt.close("all")
    return drawn


def _systems(document: Document) -> bool:
    """Bars of output tokens per second, with the lowest and highest round."""
    rows = [rate for key, rate in document["rates"].items() if key.startswith(_STANDARD)]
    if not rows:
        return False
    rows.sort(key=lambda rate: rate["median"])
    _, axes = plt.subplots(figsize=(9, 0.9 + 0.36 * len(rows)))
    _bars(axes, rows)
    work = document["workload"]
    axes.set_title(
        f"{work['shape']}, {work['dtype']}: {work['at_once']} requests at once, rank {work['rank']}, "
        f"{work['prompt_tokens']} tokens in, {work['new_tokens']} out",
        loc="left",
        fontsize=10,
    )
    return True


def _popularity(document: Document) -> bool:
    """Bars of the four popularities."""
    found = {key.removeprefix("popularity_"): rate for key, rate in document["rates"].items() if "popularity" in key}
    if not found:
        return False
    adapters = document["figures"]["popularity"]["adapters"]
    rows = [{**rate, "system": f"{name} (adapters: {adapters[name]})"} for name, rate in reversed(found.items())]
    _, axes = plt.subplots(figsize=(7, 0.9 + 0.4 * len(rows)))
    _bars(axes, rows, color=OURS)
    axes.set_title(f"{document['figures']['popularity']['requests']} requests over HTTP", loc="left", fontsize=10)
    return True


def _bars(axes: Axes, rows: list[dict[str, Any]], color: str | None = None) -> None:
    medians = [rate["median"] for rate in rows]
    spread = [
        [rate["median"] - rate["low"] for rate in rows],
        [rate["high"] - rate["median"] for rate in rows],
    ]
    colors = [color or (OURS if rate["system"].startswith("Tenora") else THEIRS) for rate in rows]
    names = [rate["system"].replace("`", "") for rate in rows]
    axes.barh(names, medians, xerr=spread, color=colors, height=0.7, error_kw={"elinewidth": 1, "ecolor": GRAY})
    widest = max(rate["high"] for rate in rows)
    for place, rate in enumerate(rows):
        axes.text(rate["high"] + 0.015 * widest, place, f"{rate['median']:,.0f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.12 * widest)
    axes.set_xlabel("output tokens per second (median; line: lowest and highest round)")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", alpha=0.3)


def _adapters(document: Document) -> bool:
    """Throughput over the number of registered adapters."""
    rates = document["rates"]
    found = _counts(rates, "sweep_") or _counts(rates, "open_loop_")
    if not found:
        return False
    counts = sorted(found)
    medians = [found[count]["median"] for count in counts]
    spread = [
        [found[count]["median"] - found[count]["low"] for count in counts],
        [found[count]["high"] - found[count]["median"] for count in counts],
    ]
    _, axes = plt.subplots(figsize=(7, 4))
    axes.errorbar(counts, medians, yerr=spread, marker="o", color=OURS, capsize=3)
    slots = document["figures"].get("sweep", document["figures"].get("many_adapters", {})).get("slots")
    if slots:
        axes.axvline(slots, color=GRAY, linestyle=":")
        axes.text(slots * 1.05, 0.04 * max(medians), f"{slots} adapter slots", color=GRAY, fontsize=9)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, 1.12 * max(found[count]["high"] for count in counts))
    axes.set_xlabel("registered adapters, all equally popular (logarithmic)")
    axes.set_ylabel("output tokens per second")
    axes.set_title("Open loop above capacity (line: lowest and highest window)", loc="left", fontsize=10)
    return True


def _counts(rates: Mapping[str, Any], prefix: str) -> dict[int, Any]:
    return {int(key.removeprefix(prefix)): rate for key, rate in rates.items() if key.startswith(prefix)}


def _bystander(document: Document) -> bool:
    """Percentiles of the inter-token latency, quiet and not; a maximum is one token, and would flatten the rest."""
    figures = document["figures"].get("bystander")
    if not figures:
        return False
    _, axes = plt.subplots(figsize=(7, 4))
    names = {
        "quiet": "alone",
        "requests": "beside short requests, adapters loaded before",
        "bytes": "the same, and a process of the lowest priority that moves as many bytes",
        "loads": "beside adapters that are loaded, asked and unloaded without pause",
    }
    colors = {"quiet": OURS, "requests": THIRD, "bytes": FOURTH, "loads": THEIRS}
    shares = [share for share in figures["itl_ms"]["quiet"] if share != "p100"]
    for kind, name in names.items():
        values = [figures["itl_ms"][kind][share] for share in shares]
        axes.plot(range(len(shares)), values, marker="o", color=colors[kind], label=name)
    axes.set_xticks(range(len(shares)), ["median" if share == "p50" else share for share in shares])
    highest = max(figures["itl_ms"][kind][shares[-1]] for kind in names)
    axes.set_ylim(0, 1.35 * highest)  # room for the legend
    axes.set_xlabel("percentile of the tokens")
    axes.set_ylabel("inter-token latency of one stream (ms)")
    axes.set_title(f"Others: {figures['loads_per_second']:.1f} adapters loaded a second", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return True


def _cliff(document: Document) -> bool:
    """Throughput and latency over the size of the working set."""
    figures = document["figures"].get("cliff")
    if not figures:
        return False
    points = figures["points"]
    sizes = [point["working_set"] for point in points]
    _, (above, below) = plt.subplots(2, 1, figsize=(7, 5.6), sharex=True)
    above.plot(sizes, [point["tokens_per_s"] for point in points], marker="o", color=OURS)
    above.set_ylim(0, 1.15 * max(point["tokens_per_s"] for point in points))
    above.set_ylabel("output tokens per second")
    below.plot(sizes, [point["p50_ms"] for point in points], marker="o", color=OURS, label="median")
    below.plot(sizes, [point["p99_ms"] for point in points], marker="o", color=THEIRS, label="p99")
    below.set_ylim(0, 1.35 * max(point["p99_ms"] for point in points))
    below.set_ylabel("a request, ms")
    below.set_xlabel("adapters in use, asked for in turn")
    below.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    for axes in (above, below):
        axes.axvline(figures["slots"], color=GRAY, linestyle=":")
        axes.axvline(figures["host_cache_adapters"], color=GRAY, linestyle=":")
    for place, text in ((figures["slots"], "slots"), (figures["host_cache_adapters"], "host cache")):
        above.text(place + 0.2, 0.03 * above.get_ylim()[1], text, color=GRAY, fontsize=9)
    above.set_title(
        f"{figures['at_once']} requests at a time, {figures['new_tokens']} tokens each", loc="left", fontsize=10
    )
    return True


if __name__ == "__main__":
    for made in draw(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])):
        print(made)
