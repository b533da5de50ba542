"""``tenora train``, ``tenora data`` and ``tenora report``: parse, hand over, and turn what goes wrong into a message.

Nothing heavy is imported before the arguments are known, so that ``--help`` is quick.
"""

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from training.config import CONFIGS, make_config
from training.errors import ConfigError, TrainingError
from training.flags import command
from training.stopping import stoppable

_SHARED = """
Every flag may also be set in the environment as TENORA_<FLAG>; flags win over the environment, the environment over
the recipe. docs/data.md tells all ways to write rows; `tenora data check` looks at them alone.
"""
_ABOUT = {
    "instruct": """Train an adapter that follows instructions.

Rows are {"instruction": …, "input": … (may be missing), "output": …}, {"messages": […]}, {"prompt": …, "completion":
…} or ShareGPT's {"conversations": […]}.
""",
    "classify": """Train an adapter that sorts texts into classes.

Rows are {"text": …, "label": …}, the label a name or a number, or {"text": …, "labels": […]} where several may apply.
""",
    "text": """Train an adapter on texts as they stand.

Rows are {"text": …}, or files of text. Served, it continues a text.
""",
    "reward": """Train an adapter that scores answers.

Rows are {"prompt": …, "chosen": …, "rejected": …}: a better and a worse answer.
""",
    "dpo": """Train an adapter to prefer better answers (direct preference optimisation, by TRL: tenora[dpo]).

Rows are {"prompt": …, "chosen": …, "rejected": …}. Served, it writes.
""",
}
_REFUSED = 2
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
    with stoppable() as stop:
        try:
            _train(task, flags, recipe)
        except TrainingError as error:
            errors.print(f"tenora: {escape(str(error))}")
            raise typer.Exit(_REFUSED) from None
        except KeyboardInterrupt as asked:
            said = asked.args or ("nothing was published",)
            errors.print(escape("; ".join(("tenora: stopped", *map(str, said)))))
            raise typer.Exit(stop.status) from None


def _train(task: str, flags: dict[str, Any], recipe: Path | None) -> None:
    config = make_config(task, flags, recipe)
    if config.data is None:
        raise ConfigError("--data is missing: give a file or a folder of rows, or a recipe that names one")
    from training.published import read_published, show_published
    from training.run import train

    published = read_published(recipe) if recipe is not None else ()
    console = _console()
    results = train(config, console)
    if results is not None and not config.json_lines:
        show_published(console, published, results)


def _console() -> Console:
    """Standard output; as wide as a page where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PAGE)


def _command(task: str) -> Any:
    return command(CONFIGS[task], lambda flags, recipe: _run(task, flags, recipe), _ABOUT[task] + _SHARED)


for _task in CONFIGS:
    app.command(_task)(_command(_task))


def main() -> None:
    """The entry point of ``python -m training``; its ``--help`` explains the flags of all commands too."""
    match sys.argv[1:]:
        case ["data", *arguments]:
            from training.data.cli import app as data

            data(arguments, prog_name="tenora data")
        case ["report", *arguments]:
            from training.reporting.cli import app as report

            report(arguments, prog_name="tenora report")
        case ["--help"] | ["-h"]:
            for arguments in (["--help"], *([task, "--help"] for task in CONFIGS)):
                app(arguments, prog_name="tenora train", standalone_mode=False)
        case _:
            app(prog_name="tenora train")
