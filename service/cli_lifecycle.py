"""`tenora adapters upload|promote|rollback|pin|unpin`: over HTTP with --url, else on the store's folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_store import (
    SHOWN_DIGITS,
    AliasesOption,
    KeyOption,
    LabelsOption,
    MultiLabelOption,
    ScoreOption,
    StoreOption,
    TemplateOption,
    UrlOption,
    connected,
    fail,
    given_labels,
    opened,
    parse_ref,
)

if TYPE_CHECKING:
    from service.client_lifecycle import Progress

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="tenant/name@DIGEST, at least 8 digits of it")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="tenant/name")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias to move.")]


def upload(
    source: Annotated[Path, typer.Argument(help="Folder that PEFT or a training run wrote, or an archive of one.")],
    name: NameArgument,
    *,
    url: Annotated[str | None, typer.Option("--url", help="The server. [TENORA_URL, http://127.0.0.1:8000]")] = None,
    key: KeyOption = None,
    template: TemplateOption = None,
    labels: LabelsOption = None,
    multi_label: MultiLabelOption = False,
    score: ScoreOption = False,
    alias: AliasesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Have it checked, and publish nothing.")] = False,
) -> None:
    """Publish an adapter on a running server."""
    if not source.exists():
        raise fail(f"there is no {source}")
    if source.is_dir() and not (source / "adapter_model.safetensors").exists():
        raise fail(f"{source} has no adapter_model.safetensors: save the adapter with safe_serialization=True")
    with connected(url, key) as client, _progress() as progress:
        version = client.upload(
            source,
            name,
            aliases=alias or (),
            template=Path(template).read_text("utf-8") if template and Path(template).is_file() else template,
            labels=given_labels(labels),
            multi_label=multi_label,
            score=score,
            dry_run=dry_run,
            progress=progress,
        )
    typer.echo(f"{version.adapter}@{version.digest}{' would be published' if dry_run else ''}")


def promote(
    version: VersionArgument,
    alias: AliasOption = "latest",
    store: StoreOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Point an alias at a version; requests in flight finish on theirs."""
    name, digest = _version(version)
    if url is not None:
        with connected(url, key) as client:
            moved = client.promote(name, digest, alias)
    else:
        with opened(store) as own:
            moved = own.set_alias(parse_ref(name).name, alias, digest)
    typer.echo(f"{name}:{alias} -> {moved[:SHOWN_DIGITS]}")


def rollback(
    name: NameArgument,
    alias: AliasOption = "latest",
    store: StoreOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Point an alias at what it pointed at before."""
    if url is not None:
        with connected(url, key) as client:
            moved = client.rollback(name, alias)
    else:
        with opened(store) as own:
            moved = own.roll_back(parse_ref(name).name, alias)
    typer.echo(f"{name}:{alias} -> {moved[:SHOWN_DIGITS]}")


def pin(version: VersionArgument, store: StoreOption = None, url: UrlOption = None, key: KeyOption = None) -> None:
    """Keep a version from being deleted, and in a server's memory once it was read."""
    _set_pinned(version, True, store, url, key)


def unpin(version: VersionArgument, store: StoreOption = None, url: UrlOption = None, key: KeyOption = None) -> None:
    """Let a pinned version go."""
    _set_pinned(version, False, store, url, key)


def _set_pinned(version: str, pinned: bool, store: Path | None, url: str | None, key: str | None) -> None:
    name, digest = _version(version)
    if url is not None:
        with connected(url, key) as client:
            digest = client.pin(name, digest, pinned).digest
    else:
        with opened(store) as own:
            digest = own.set_pinned(parse_ref(name).name, digest, pinned)
    typer.echo(f"{name}@{digest[:SHOWN_DIGITS]} is {'pinned' if pinned else 'no longer pinned'}")


def _version(text: str) -> tuple[str, str]:
    name, _, digest = text.partition("@")
    if not digest:
        raise fail(f"{text} names no version: write {name}@DIGEST")
    return name, digest


@contextmanager
def _progress() -> "Iterator[Progress | None]":
    """A bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
