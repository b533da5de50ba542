"""``tenora report``: show what a run or a published adapter tells of itself."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.errors import AdapterError
from adapters.extras import REPORT_FILE
from adapters.names import AdapterRef
from training.errors import TrainingError
from training.reporting.results import RESULTS_FILE, ReportError, read_results

_FAILED = 2
_PAGE = 120

app = typer.Typer(
    help="Show how an adapter was trained and what it reached.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def report(
    subject: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER", help="tenant/name, with @DIGEST or :ALIAS; or a run's folder.")
    ],
    store: Annotated[
        Path, typer.Option("--store", envvar="TENORA_STORE", show_envvar=False, help="Folder of the store.")
    ] = Path("store"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show how an adapter was trained and what it reached: figures before and after, labels, answers, limits."""
    try:
        file, title = find_report(subject, store)
        results = read_results(file)
    except (TrainingError, AdapterError) as error:
        sys.stderr.write(f"tenora: {error}\n")
        raise typer.Exit(_FAILED) from None
    if as_json:
        typer.echo(results.model_dump_json(indent=2))
        return
    from training.reporting.tables import show_report

    show_report(_console(), results, title)


def find_report(subject: str, store: Path) -> tuple[Path, str]:
    """The file of results that ``subject`` means, and what to call it: a folder if there is one, else an adapter.

    Raises:
        ReportError: there is no such folder and no such adapter, or no report with it.
        AdapterError: the name is none, or there is no such version.
    """
    folder = Path(subject)
    if folder.is_dir():
        return _in_folder(folder), subject
    if not store.is_dir():
        raise ReportError(f"{subject} is no folder, and there is no store at {store}: name one with --store")
    return _in_store(AdapterRef.parse(subject), store)


def _in_folder(folder: Path) -> Path:
    """A run's own results before what it wrote beside its adapter: they are whole."""
    for name in (RESULTS_FILE, REPORT_FILE):
        if (folder / name).is_file():
            return folder / name
    raise ReportError(f"{folder} holds neither {RESULTS_FILE} nor {REPORT_FILE}: name the folder that a run wrote")


def _in_store(ref: AdapterRef, store: Path) -> tuple[Path, str]:
    from adapters.store import Store  # reading manifests imports what renders prompts

    version = Store(store).resolve(ref)
    file = version.extras.get(REPORT_FILE)
    title = f"{version.name}@{version.digest[:12]}"
    if file is None:
        raise ReportError(f"{title} was published without a report: train it with tenora train, then publish it again")
    return file, title


def _console() -> Console:
    """Standard output; as wide as a page where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PAGE)


if __name__ == "__main__":
    app(prog_name="tenora report")
