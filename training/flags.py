"""The command line of a task, made from the fields of its configuration."""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from training.config import TrainConfig, flag_of

Run = Callable[[dict[str, Any], Path | None], None]


def command(config: type[TrainConfig], run: Run, doc: str) -> Callable[..., None]:
    """A function for typer that has one option for each field and calls ``run(given flags, recipe)``."""

    def call(recipe: Path | None = None, **values: Any) -> None:
        run({name: value for name, value in values.items() if value is not None}, recipe)

    parameters = [_recipe(), *(_parameter(name, field) for name, field in config.model_fields.items())]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = doc
    return call


def _recipe() -> inspect.Parameter:
    option = typer.Option(
        "--recipe",
        envvar="TENORA_RECIPE",
        show_envvar=False,
        metavar="TOML",
        rich_help_panel="Data",
        help="Take what flags leave open from this file; one that comes with tenora goes by its name.",
    )
    return _keyword("recipe", Annotated[Path | None, option])


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = flag_of(name, field)
    kind, metavar = _kind(field.annotation)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        envvar=f"TENORA_{name.upper()}",
        metavar=metavar,
        rich_help_panel=_group(field),
        help=f"{field.description}{_shown(field.default)}",
        show_default=False,
        show_envvar=False,
    )
    return _keyword(name, Annotated[kind | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Options"


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """The type that typer parses, and the word shown for the value."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return str, "|".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return str, "LIST"
    if get_origin(annotation) is dict:
        return str, "NAME=VALUE"
    words = {Path: "PATH", int: "N", float: "X", str: "TEXT", bool: None}
    return annotation, words[annotation]


def _shown(default: Any) -> str:
    """`` [default]``, escaped for the help page's markup; nothing where a flag has no default."""
    if default is None or default in ((), {}):
        return ""
    if isinstance(default, bool):
        text = "yes" if default else "no"
    else:
        text = ",".join(default) if isinstance(default, tuple) else str(default)
    return rf" \[{text}]"
