"""The paper that all pictures share: size, colours, letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDTH = 7.0
"""Inches; at 100 dots an inch these are the 700 pixels that a page shows."""
BLUE, ORANGE, GREY, DARK, PALE = "#1f6fb4", "#d9661f", "#9a9a9a", "#333333", "#dddddd"
SMALL = 8.0
"""Points; the smallest letters but for those in crowded matrices."""

_DOTS = 200  # twice what is shown, for sharp letters
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "text.color": DARK,
    "text.parse_math": False,  # a label may hold dollars
}


@contextmanager
def canvas(file: Path, height: float) -> Iterator[Figure]:
    """A figure of ``WIDTH`` times ``height`` inches, written to ``file`` at the end.

    It never touches pyplot, whose state a program that trains may use for its own pictures.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=_DOTS, layout="constrained")
        yield figure
        figure.savefig(file)


def spread(places: dict[str, float], least: float) -> dict[str, float]:
    """The same places moved apart, as little as needed, so that labels at them stand ``least`` from each other."""
    moved: dict[str, float] = {}
    lowest = float("-inf")
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        moved[name] = lowest = max(place, lowest + least)
    return moved


def end_labels(axes: Any, at: float, places: dict[str, float], colours: dict[str, str]) -> None:
    """Write each name to the right of where its line ends (``at``, place)."""
    low, high = axes.get_ylim()
    for name, place in spread(places, (high - low) * 0.055).items():
        axes.annotate(
            name,
            (at, place),
            xytext=(9, 0),
            textcoords="offset points",
            color=colours[name],
            va="center",
            annotation_clip=False,
        )
