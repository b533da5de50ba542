"""`tenora adapters`: looks into a store and changes it, without a server; `cli_lifecycle.py` knows both."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_lifecycle import pin, promote, rollback, unpin, upload
from service.cli_store import (
    SHOWN_DIGITS,
    AliasesOption,
    LabelsOption,
    MultiLabelOption,
    ScoreOption,
    StoreOption,
    TemplateOption,
    fail,
    given_labels,
    opened,
    parse_ref,
    store_settings,
    table,
)

if TYPE_CHECKING:
    from adapters.names import AdapterRef
    from adapters.store import Version
    from adapters.templates import PromptTemplate

adapters = typer.Typer(
    help="List, show, publish and delete the adapters of a store; upload, promote and pin them on a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BaseOption = Annotated[
    str | None, typer.Option("--base", help="Base that the adapter belongs to. [TENORA_BASE, embedded]")
]
NameArgument = Annotated[str, typer.Argument(help="tenant/name")]
RefArgument = Annotated[str, typer.Argument(help="tenant/name, with @DIGEST or :ALIAS")]

for command in (upload, promote, rollback, pin, unpin):
    adapters.command()(command)


@adapters.command("list")
def list_adapters(
    store: StoreOption = None, tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None
) -> None:
    """List the adapters of a store."""
    from adapters.errors import AdapterError
    from adapters.names import LATEST

    with opened(store) as own:
        rows = []
        for name in own.names(tenant):
            aliases = own.aliases(name)
            try:
                versions = own.versions(name)
            except AdapterError as error:
                rows.append((str(name), "broken", error.message, "", "", ""))
                continue
            latest = next((version for version in versions if version.digest == aliases.get(LATEST)), None)
            rows.append(
                (
                    str(name),
                    latest.manifest.task if latest else "-",
                    latest.digest[:SHOWN_DIGITS] if latest else "-",
                    str(len(versions)),
                    ", ".join(sorted(set(aliases) - {LATEST})) or "-",
                    "yes" if own.is_served(name) else "no",
                )
            )
    table(("adapter", "task", "latest", "versions", "aliases", "served"), rows)


@adapters.command()
def show(adapter: RefArgument, store: StoreOption = None) -> None:
    """Show one adapter: its versions, where it came from, how it was trained."""
    with opened(store) as own:
        ref = parse_ref(adapter)
        aliases = own.aliases(ref.name)
        versions = [version for version in own.versions(ref.name) if _is_meant(version, ref, aliases)]
        if not versions:
            raise fail(f"{adapter} is not in the store")
        named = {digest: [alias for alias in aliases if aliases[alias] == digest] for digest in aliases.values()}
    for version in versions:
        table(("field", "value"), _facts(version, named.get(version.digest, [])))


@adapters.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder that PEFT or a training run wrote.")],
    name: NameArgument,
    *,
    store: StoreOption = None,
    base: BaseOption = None,
    template: TemplateOption = None,
    labels: LabelsOption = None,
    multi_label: MultiLabelOption = False,
    score: ScoreOption = False,
    alias: AliasesOption = None,
) -> None:
    """Check an adapter against its base and publish it as a new version."""
    from adapters.base import resolve_base
    from adapters.names import LATEST, AdapterName

    with opened(store, create=True) as own:
        settings = store_settings(base=base)
        target = AdapterName.parse(name)
        if not folder.is_dir():
            raise fail(f"{folder} is not a folder")
        version = own.publish(
            folder,
            target,
            resolve_base(settings.base, settings.base_revision),
            aliases=(LATEST, *(alias or ())),
            template=_template(template),
            labels=given_labels(labels),
            multi_label=multi_label,
            score=score,
        )
    typer.echo(f"{version.name}@{version.digest}")


@adapters.command()
def alias(
    adapter: RefArgument,
    name: Annotated[str, typer.Argument(help="The alias to point at it.")],
    store: StoreOption = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias instead.")] = False,
) -> None:
    """Point an alias at a version; moving `latest` back is a rollback."""
    from adapters.names import LATEST

    with opened(store) as own:
        ref = parse_ref(adapter)
        if remove:
            own.delete_alias(ref.name, name)
            typer.echo(f"{ref.name}:{name} removed")
            return
        digest = ref.version or own.aliases(ref.name).get(ref.alias or LATEST)
        if digest is None:
            raise fail(f"{adapter} is not in the store")
        own.set_alias(ref.name, name, digest)
        typer.echo(f"{ref.name}:{name} -> {own.aliases(ref.name)[name][:SHOWN_DIGITS]}")


@adapters.command()
def delete(
    adapter: RefArgument,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a version (tenant/name@DIGEST) or an adapter with all its versions (tenant/name)."""
    with opened(store) as own:
        ref = parse_ref(adapter)
        if ref.alias is not None:
            raise fail(f"an alias is removed by: tenora adapters alias {ref.name} {ref.alias} --remove")
        what = str(ref) if ref.version else f"{ref.name} with {len(own.versions(ref.name))} version(s)"
        if not yes and not typer.confirm(f"Delete {what}?"):
            raise typer.Exit(1)
        grace = store_settings(store=store).delete_grace
        if ref.version:
            own.delete_version(ref.name, ref.version, grace=grace)
        else:
            own.delete(ref.name, grace=grace)
    typer.echo(f"{what} deleted; its files go in {grace:g} s, or when a server next starts")


def _is_meant(version: "Version", ref: "AdapterRef", aliases: dict[str, str]) -> bool:
    if ref.version is not None:
        return version.digest.startswith(ref.version)
    return ref.alias is None or aliases.get(ref.alias) == version.digest


def _template(given: str | None) -> "PromptTemplate | None":
    from adapters.templates import PromptTemplate

    if given is None:
        return None
    file = Path(given)
    return PromptTemplate.from_text(file.read_text("utf-8")) if file.is_file() else PromptTemplate.named(given)


def _facts(version: "Version", aliases: list[str]) -> list[tuple[str, str]]:
    manifest = version.manifest
    facts = [
        ("adapter", f"{version.name}@{version.digest}"),
        ("aliases", ", ".join(sorted(aliases)) or "-"),
        ("task", manifest.task),
        ("base", f"{manifest.base.id} ({manifest.base.fingerprint[:SHOWN_DIGITS]})"),
        ("created", manifest.created),
        ("max_length", str(manifest.max_length)),
    ]
    if manifest.prompt is not None:
        facts.append(("template", manifest.prompt.template))
    if manifest.labels is not None:
        facts.append(("labels", ", ".join(manifest.labels) + (" (several at once)" if manifest.multi_label else "")))
    facts += [(f"metrics.{key}", str(value)) for key, value in manifest.metrics.items()]
    facts += [(f"recipe.{key}", str(value)) for key, value in manifest.recipe.items()]
    facts.append(("folder", str(version.path)))
    if version.extras:
        facts.append(("beside it", ", ".join(version.extras)))
    return facts
