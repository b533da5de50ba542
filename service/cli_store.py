"""What the commands about adapters share: opening a store or a connection, and saying in one sentence what is wrong."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adapters.database.database import Database
    from adapters.names import AdapterRef
    from adapters.store import Store
    from service.client import TenoraClient
    from service.settings import StoreSettings

FAILED = 2
SHOWN_DIGITS = 12

StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of the store. [TENORA_STORE, ./store]")]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="URL of the database. [TENORA_DATABASE, a file in the store]")
]
UrlOption = Annotated[str | None, typer.Option("--url", help="A running server, instead of a store's folder.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="API key for that server. [TENORA_API_KEY]")]
TemplateOption = Annotated[
    str | None, typer.Option(help="Prompt template of a plain PEFT folder: alpaca, chat, plain, or a Jinja file.")
]
LabelsOption = Annotated[
    str | None, typer.Option(help="Labels of a plain PEFT classifier, in order, separated by commas.")
]
MultiLabelOption = Annotated[
    bool, typer.Option("--multi-label", help="A plain PEFT classifier's labels hold or not each by itself.")
]
ScoreOption = Annotated[
    bool, typer.Option("--score", help="A plain PEFT head of one number scores answers: a reward model.")
]
AliasesOption = Annotated[list[str] | None, typer.Option(help="Also point this alias at it; repeat for more.")]


@contextmanager
def opened(store: Path | None, *, create: bool = False) -> "Iterator[Store]":
    """The store that is meant; whatever it refuses ends the command."""
    from adapters.errors import AdapterError
    from service.opening import open_store

    settings = store_settings(store=store)
    if not create and not settings.store.is_dir():
        raise fail(f"there is no store at {settings.store}: name one with --store")
    try:
        yield open_store(settings)
    except AdapterError as error:
        raise fail(error.message) from error
    except OSError as error:
        raise fail(f"{error.strerror}: {error.filename}") from error


@contextmanager
def opened_database(store: Path | None, database: str | None, *, must_exist: bool = False) -> "Iterator[Database]":
    """The database that is meant, a new one in the store's folder unless it must exist; a refusal ends the command."""
    from adapters.errors import AdapterError
    from service.errors import ServiceError
    from service.opening import open_database

    settings = store_settings(store=store, database=database)
    if must_exist and settings.database is None and not settings.store.is_dir():
        raise fail(f"there is no store at {settings.store}: name one with --store")
    try:
        found = open_database(settings)
        try:
            yield found
        finally:
            found.close()
    except (AdapterError, ServiceError) as error:
        raise fail(error.message) from error
    except OSError as error:
        raise fail(f"{error.strerror}: {error.filename}") from error


@contextmanager
def connected(url: str | None, key: str | None) -> "Iterator[TenoraClient]":
    """A client of the server that is meant; whatever it refuses ends the command."""
    from service.client import TenoraClient, TenoraError
    from service.settings import SettingsError, load_client_settings

    try:
        settings = load_client_settings(url=url, api_key=key)
        shown = settings.api_key.get_secret_value() if settings.api_key is not None else None
        with TenoraClient(settings.url, shown) as client:
            yield client
    except SettingsError as error:
        raise fail(str(error)) from error
    except TenoraError as error:
        raise fail(error.message) from error
    except OSError as error:
        raise fail(f"{error.strerror}: {error.filename}") from error


def store_settings(**flags: object) -> "StoreSettings":
    """The settings of a store; a flag that is None is not given."""
    from service.settings import SettingsError, load_store_settings

    try:
        return load_store_settings(**flags)
    except SettingsError as error:
        raise fail(str(error)) from error


def fail(message: str) -> typer.Exit:
    """Say what is wrong; raise what this returns."""
    sys.stderr.write(f"tenora: {message}\n")
    return typer.Exit(FAILED)


def parse_ref(text: str) -> "AdapterRef":
    """Read tenant/name, with @DIGEST or :ALIAS."""
    from adapters.names import AdapterRef

    return AdapterRef.parse(text, None)


def given_labels(text: str | None) -> tuple[str, ...] | None:
    """Labels that were separated by commas."""
    return tuple(label.strip() for label in text.split(",")) if text else None


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: whole lines where it is piped on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    # A pipe gets whole lines: rich would fold them at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(made)
