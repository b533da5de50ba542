"""Figures of a recipe to compare with, most of them published by others, beside what it gives here.

A recipe may hold tables ``[[published]]``, which are no part of the configuration:

    [[published]]
    source = "where the figures come from"
    by = "step"                                  # or "epoch"
    columns = ["train_loss", "validation_loss"]  # train_loss, or validation_ and the name of a metric
    rows = [["before", 3.826, 3.762], [0, 2.637, 2.626], [5, 1.174, 1.103]]
    first_step = 1                               # what is called step 0 there was taken after so many steps here
    sentences = [["It was good.", "Positive"]]   # what the trained model said there
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.config import PUBLISHED, find_recipe
from training.errors import ConfigError
from training.reporting.results import Evaluation, Point, Results

_TRAIN, _VALIDATION = "train_loss", "validation_"
_Place = float | Literal["before"]


class PublishedRun(BaseModel):
    """A table as the recipe has it. ``rows`` begin with the step or the epoch, one figure for each column after."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    by: Literal["step", "epoch"]
    columns: tuple[str, ...] = Field(min_length=1)
    rows: tuple[tuple[_Place, ...], ...] = Field(min_length=1)
    first_step: int = Field(0, ge=0)
    sentences: tuple[tuple[str, str], ...] = ()

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [name for name in columns if name != _TRAIN and not name.startswith(_VALIDATION)]:
            raise ValueError(f"{', '.join(bad)}: write {_TRAIN}, or {_VALIDATION} and the name of a metric")
        return columns

    @model_validator(mode="after")
    def _as_wide(self) -> Self:
        width = len(self.columns) + 1
        if bad := [row for row in self.rows if len(row) != width]:
            raise ValueError(
                f"rows have {width} numbers, the {self.by} and one for each column; {list(bad[0])} has not"
            )
        if bad := [row for row in self.rows if any(isinstance(figure, str) for figure in row[1:])]:
            raise ValueError(f"what stands behind the {self.by} are figures; in {list(bad[0])} there is a word")
        return self


_TABLES = TypeAdapter(tuple[PublishedRun, ...])


def read_published(recipe: Path) -> tuple[PublishedRun, ...]:
    """The published figures of a recipe that ``training.config.read_recipe`` has accepted.

    Raises:
        ConfigError: the table is not as it should be; the key is named.
    """
    path = find_recipe(recipe)
    tables = tomllib.loads(path.read_text(encoding="utf-8")).get(PUBLISHED, [])
    try:
        return _TABLES.validate_python(tables if isinstance(tables, list) else [tables])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, (PUBLISHED, *first["loc"])))
        raise ConfigError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def show_published(console: Console, published: Sequence[PublishedRun], results: Results) -> None:
    """Print the published figures beside those of a run, and both answers to the sentences."""
    for table in published:
        console.print(_figures(table, results))
        if table.sentences:
            console.print(_sentences(table, results.after))


def _figures(published: PublishedRun, results: Results) -> Table:
    table = Table(title=f"as published ({escape(published.source)}), and here", title_justify="left")
    if _TRAIN in published.columns and results.recipe.get("train_curve") == "steps":
        table.caption = "train loss here: the mean of the steps since the last point, as they were learned"
        table.caption_justify = "left"
    table.add_column(published.by, justify="right")
    for name in published.columns:
        words = escape(name.replace("_", " "))
        table.add_column(f"{words}\npublished", justify="right")
        table.add_column(f"{words}\nhere", justify="right")
    for place, *figures in published.rows:
        point = _point(published, place, results)
        pairs = zip(published.columns, figures, strict=True)
        cells = [cell for name, figure in pairs for cell in (f"{float(figure):.3f}", _shown(point, name))]
        table.add_row(place if isinstance(place, str) else f"{place:g}", *cells)
    return table


def _point(published: PublishedRun, place: _Place, results: Results) -> Point | None:
    """What was measured here at the published place, if the run came so far."""
    if isinstance(place, str):
        return results.history[0]
    if published.by == "epoch":
        return next((point for point in results.epochs if round(point.epoch, 6) == place), None)
    return next((point for point in results.history if point.step == place + published.first_step), None)


def _shown(point: Point | None, name: str) -> str:
    if point is None:
        return "–"
    value = point.train_loss if name == _TRAIN else point.validation.get(name.removeprefix(_VALIDATION))
    return "–" if value is None else f"{value:.3f}"


def _sentences(published: PublishedRun, after: Evaluation) -> Table:
    table = Table("sentence", "published", "here", title="after training", title_justify="left")
    here = {sample.prompt: sample.answer for sample in (*after.sentences, *after.samples)}
    for sentence, answer in published.sentences:
        table.add_row(escape(sentence), escape(answer), escape(here.get(sentence, "–")))
    return table
