"""The command `tenora`. Every error is one sentence on stderr and exit code 2."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.cli_adapters import adapters
from service.cli_records import events, usage
from service.cli_tenants import keys, tenants
from service.settings import SettingsError, load_client_settings, load_settings, unknown_variables

app = typer.Typer(
    help="One frozen base model, many LoRA adapters: train, publish and serve them in the same batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(adapters, name="adapters")
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")

FAILED = 2

Url = Annotated[str | None, typer.Option("--url", help="Where the server is. [TENORA_URL, http://127.0.0.1:8000]")]
Key = Annotated[str | None, typer.Option("--key", help="API key. [TENORA_API_KEY]")]


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["train", *arguments]:
            training(arguments)
        case ["data" | "report", *_]:
            training(sys.argv[1:])
    app(prog_name="tenora")


def training(arguments: list[str]) -> None:
    """Become `python -m training`: this process is replaced, so signals and exit codes are its own.

    `tenora train instruct …` is `python -m training instruct …`; the other commands keep their names, as in
    `python -m training data …` and `python -m training report …`.
    """
    os.execv(sys.executable, [sys.executable, "-m", "training", *arguments])  # noqa: S606


def fail(message: str) -> typer.Exit:
    """Say what is wrong; raise what this returns."""
    sys.stderr.write(f"tenora: {message}\n")
    return typer.Exit(FAILED)


@app.callback(invoke_without_command=True)
def tenora(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """One frozen base model, many LoRA adapters."""
    if version:
        from service.server import tenora_version

        typer.echo(f"tenora {tenora_version()}")
        raise typer.Exit


@app.command()
def serve(
    *,
    base: Annotated[
        str | None, typer.Option(help="Base model: embedded, minilm, a folder, or a hub id. [embedded]")
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of a base that comes from a hub.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the adapter store. [./store]")] = None,
    database: Annotated[
        str | None, typer.Option(help="Where names and keys are kept: postgresql://… [a file in the store]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [8000]")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"] | None, typer.Option(help="Numbers of the base. [auto]")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the base runs. [auto]")] = None,
    kernels: Annotated[
        str | None, typer.Option(help="What computes on a CPU: auto, native (compiled for it) or torch.")
    ] = None,
    quantize: Annotated[
        Literal["none", "int8"] | None, typer.Option(help="Round the base's weights: int8 or none. [none]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU kernels.")] = None,
    examples: Annotated[
        bool | None, typer.Option("--examples", help="Publish the adapters that come with the embedded base.")
    ] = None,
    max_running: Annotated[int | None, typer.Option(help="Sequences that may hold KV cache at once. [32]")] = None,
    adapter_slots: Annotated[int | None, typer.Option(help="Adapters resident in device memory. [16]")] = None,
    adapter_folder: Annotated[
        list[Path] | None, typer.Option(help="Folder that adapters may be imported from over HTTP; repeat for more.")
    ] = None,
    allow_no_auth: Annotated[
        bool | None, typer.Option("--allow-no-auth", help="Serve other machines although there are no API keys.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="What is logged. [warning]")
    ] = None,
) -> None:
    """Serve a base and the adapters of a store over HTTP. Each option is also a variable TENORA_<OPTION>."""
    for name in unknown_variables():
        sys.stderr.write(f"tenora: {name} is no setting of the server and is ignored\n")
    try:
        settings = load_settings(
            base=base,
            base_revision=base_revision,
            store=store,
            database=database,
            host=host,
            port=port,
            dtype=dtype,
            device=device,
            kernels=kernels,
            quantize=quantize,
            threads=threads,
            examples=examples,
            max_running=max_running,
            adapter_slots=adapter_slots,
            adapter_folders=tuple(adapter_folder) if adapter_folder else None,
            allow_no_auth=allow_no_auth,
            log_level=log_level,
        )
    except SettingsError as error:
        raise fail(str(error)) from error
    gc.disable()  # until the server has been imported
    from service.server import serve as run

    run(settings)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Adapter (tenant/name, with @digest or :alias) or the base's id.")],
    text: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.")],
    *,
    url: Url = None,
    key: Key = None,
    input: Annotated[str | None, typer.Option(help="Input of the instruction; asks /v1/instruct.")] = None,  # noqa: A002
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    instruct: Annotated[bool, typer.Option("--instruct", help="Ask /v1/instruct instead of chat.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without a template.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is written (chat only).")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
) -> None:
    """Ask a running server and print the answer."""
    if (raw or instruct or input is not None) and stream:
        raise fail("--stream is for chat: leave out --instruct, --input and --raw")
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options: Any = {name: value for name, value in given.items() if value is not None}
    text = sys.stdin.read() if text == "-" else text
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": text})
    with _client(url, key) as client:
        if stream:
            for piece in client.stream(model, turns, **options):
                typer.echo(piece, nl=False)
            typer.echo()
            return
        if raw:
            answer = client.complete(model, text, **options)
        elif instruct or input is not None:
            answer = client.instruct(model, text, input or "", **options)
        else:
            answer = client.chat(model, turns, **options)
    typer.echo(answer.text)


@app.command()
def classify(
    model: Annotated[str, typer.Argument(help="Adapter that classifies (tenant/name, with @digest or :alias).")],
    texts: Annotated[list[str], typer.Argument(help="Texts to classify.")],
    *,
    url: Url = None,
    key: Key = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability from which on a label holds; for adapters with several at once. [0.5]"),
    ] = None,
) -> None:
    """Classify texts on a running server and print each label with its probability."""
    with _client(url, key) as client:
        results = client.classify(model, texts, threshold=threshold)
    for text, result in zip(texts, results, strict=True):
        labels = [result.label] if result.selected is None else result.selected
        probabilities = ", ".join(f"{result.probabilities[label]:.4f}" for label in labels)
        typer.echo(f"{', '.join(labels) or '-'}\t{probabilities or '-'}\t{text}")


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Adapter that scores (tenant/name, with @digest or :alias).")],
    prompt: Annotated[str, typer.Argument(help="What is answered.")],
    answers: Annotated[list[str], typer.Argument(help="Answers to score.")],
    *,
    url: Url = None,
    key: Key = None,
    input: Annotated[str | None, typer.Option(help="Input of the instruction that the prompt is.")] = None,  # noqa: A002
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
) -> None:
    """Score answers with a reward model on a running server, and print each with its score."""
    if input is not None and system is not None:
        raise fail("--input is for an instruction and --system for a conversation: leave one out")
    turns = [{"role": "system", "content": system or ""}, {"role": "user", "content": prompt}]
    asked = {"messages": turns} if system else {"instruction": prompt, "input": input or ""}
    with _client(url, key) as client:
        results = client.score(model, [{**asked, "answer": answer} for answer in answers])
    for answer, result in zip(answers, results, strict=True):
        typer.echo(f"{result.score:.4f}\t{answer}")


app.command()(usage)
app.command()(events)


# These are only for the help: `main` has replaced the process before they could be called.
@app.command("train", help="Train an adapter and publish it; see tenora train --help.", add_help_option=False)
def _train() -> None:
    training([])


@app.command("data", help="Check rows before training; see tenora data --help.", add_help_option=False)
def _data() -> None:
    training(["data"])


@app.command("report", help="Show what a training reached; see tenora report --help.", add_help_option=False)
def _report() -> None:
    training(["report"])


@contextmanager
def _client(url: str | None, key: str | None) -> Iterator[Any]:
    from service.client import TenoraClient, TenoraError

    try:
        settings = load_client_settings(url=url, api_key=key)
        shown = settings.api_key.get_secret_value() if settings.api_key is not None else None
        with TenoraClient(settings.url, shown) as client:
            yield client
    except SettingsError as error:
        raise fail(str(error)) from error
    except TenoraError as error:
        raise fail(error.message) from error


if __name__ == "__main__":
    main()
