"""``tenora train``: parse, hand over, and turn what goes wrong into a message and a status.

Nothing heavy is imported before the arguments are known, so that ``--help`` is quick.
"""

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from training.config import ClassifyConfig, InstructConfig, make_config
from training.errors import ConfigError, TrainingError
from training.flags import command

_INSTRUCT = """Train an adapter that follows instructions.

Rows are {"instruction": ..., "input": ... (may be missing), "output": ...}. Every flag may also be set in the
environment as TENORA_<FLAG>; flags win over the environment, the environment over the recipe.
"""
_CLASSIFY = """Train an adapter that sorts texts into classes.

Rows are {"text": ..., "label": ...}, the label a name or a number. Every flag may also be set in the environment as
TENORA_<FLAG>; flags win over the environment, the environment over the recipe.
"""
_REFUSED, _INTERRUPTED = 2, 130
_PAGE = 120

app = typer.Typer(
    help="Train a LoRA adapter, compare it with its base, and publish it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _run(task: str, flags: dict[str, Any], recipe: Path | None) -> None:
    """Run a task and end the process with its status."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        config = make_config(task, flags, recipe)
        if config.data is None:
            raise ConfigError("--data is missing: give a .jsonl, .json or .csv file, or a recipe that names one")
        from training.run import train

        train(config, _console())
    except TrainingError as error:
        errors.print(f"tenora: {escape(str(error))}")
        raise typer.Exit(_REFUSED) from None
    except KeyboardInterrupt:
        errors.print("tenora: stopped; nothing was published")
        raise typer.Exit(_INTERRUPTED) from None


def _console() -> Console:
    """Standard output; as wide as a page where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PAGE)


app.command("instruct")(command(InstructConfig, lambda flags, recipe: _run("instruct", flags, recipe), _INSTRUCT))
app.command("classify")(command(ClassifyConfig, lambda flags, recipe: _run("classify", flags, recipe), _CLASSIFY))


def main() -> None:
    """The entry point of ``python -m training``; its ``--help`` explains the flags of both commands too."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        for arguments in (["--help"], ["instruct", "--help"], ["classify", "--help"]):
            app(arguments, prog_name="tenora train", standalone_mode=False)
        return
    app(prog_name="tenora train")
