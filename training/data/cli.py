"""``tenora data``: look at rows before training on them.

Nothing heavy is imported before the arguments are known, so that ``--help`` is quick.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from training.data.check import Checked
    from training.data.columns import Kind

_WARNED, _REFUSED = 1, 2
_PAGE = 120
Task = Literal["instruct", "classify", "text", "preference", "reward", "dpo"]

app = typer.Typer(
    help="Look at rows before training on them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def data() -> None:
    """Look at rows before training on them."""


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="A file or folder of rows, or - for standard input.", metavar="DATA")],
    *,
    task: Annotated[Task | None, typer.Option(help="What the rows are for; else their columns tell.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Validation rows, compared with the data.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test rows, compared with the data.")] = None,
    columns: Annotated[str, typer.Option(help="Names of yours for ours: review=text,sentiment=label.")] = "",
    ignore_columns: Annotated[str, typer.Option(help="Columns to pass over, separated by commas.")] = "",
    labels: Annotated[str, typer.Option(help="Names of the labels in order, by commas; else the data's.")] = "",
    file_format: Annotated[
        Literal["jsonl", "json", "csv", "parquet", "txt"] | None,
        typer.Option("--format", help="What standard input holds, and files whose suffix does not say. [jsonl]"),
    ] = None,
    base: Annotated[str, typer.Option(help="Base whose tokens are counted.")] = "embedded",
    template: Annotated[str, typer.Option(help="Prompt: alpaca, chat, plain, or the path of a Jinja file.")] = "alpaca",
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens in a row; else as many as training takes: 256, or the base's context."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 if there are warnings.")] = False,
) -> None:
    """Say what kind of rows a file holds, how many and how long, what is wrong with them and what is worth knowing.

    The status is 2 if rows cannot be used, else 0.
    """
    paths = {"data": data, "validation": validation, "test": test}
    from adapters.errors import AdapterError

    try:
        from training.data.check import check as look

        checked = look(
            {part: path for part, path in paths.items() if path is not None},
            kind=_kind(task),
            columns=_pairs(columns),
            ignore=_names(ignore_columns),
            labels=_names(labels),
            file_kind=file_format,
            base=base,
            template=template,
            max_length=max_length,
        )
    except (TrainingError, AdapterError, OSError) as error:
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        errors.print(f"tenora: {escape(str(error))}")
        raise typer.Exit(_REFUSED) from None
    _print(checked, as_json=as_json)
    if checked.problems:
        raise typer.Exit(_REFUSED)
    if strict and checked.has_warnings:
        raise typer.Exit(_WARNED)


def _print(checked: "Checked", *, as_json: bool) -> None:
    from training.data import report

    if as_json:
        typer.echo(json.dumps(report.as_json(checked), ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    report.show(console if console.is_terminal else Console(highlight=False, width=_PAGE), checked)


def _kind(task: Task | None) -> "Kind | None":
    """The kind of rows that a task learns from."""
    match task:
        case "reward" | "dpo":
            return "preference"
        case _:
            return task


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(text: str) -> dict[str, str]:
    """``theirs=ours,…`` as a mapping.

    Raises:
        ConfigError: a part without ``=``.
    """
    pairs = {}
    for pair in _names(text):
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs.strip() or not ours.strip():
            raise ConfigError(f"--columns {pair}: write yours=ours, as in review=text")
        pairs[theirs.strip()] = ours.strip()
    return pairs


def main() -> None:
    """The entry point of ``python -m training.data``."""
    app(prog_name="tenora data")
