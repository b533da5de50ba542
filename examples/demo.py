"""The product in one run: train two adapters, serve both from one frozen base, swap one under load.

    python -m examples.demo [--folder build/demo]          (`make demo` sets up the environment first)

Everything goes through the same doors that a user has: the `tenora` command and HTTP. The summary is
`build/demo.json`; the exit status is 0 only if every request was answered and the base's weights did not change.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from service.client import AsyncTenoraClient, TenoraClient, TenoraError

ROOT = Path(__file__).resolve().parents[1]
INSTRUCT, SENTIMENT = "demo/instruct", "demo/sentiment"
SWAP_SECONDS = 2.0
START_SECONDS = 60.0

HELD_OUT = [json.loads(line) for line in (ROOT / "examples" / "instructions_heldout.jsonl").read_text().splitlines()]
INSTRUCTIONS = [(row["instruction"], row["input"]) for row in HELD_OUT if row["input"]][:4]
REVIEWS = [
    "It was good.",
    "Not a fan, don't recommend.",
    "The soup was cold and nobody said sorry.",
    "Best little phone I have owned in years.",
    "I would happily stay here again.",
    "Broke after two days, what a waste.",
]
STORIES = ["Once upon a time there was", "The little dog ran to"]

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class DemoError(RuntimeError):
    """Something did not happen that the demo promises."""


class Summary:
    """What the demo found out; becomes build/demo.json."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"seconds": {}, "requests": 0, "errors": 0}

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and note how long it took."""
        console.rule(f"[bold]{title}")
        start = time.monotonic()
        yield
        self.values["seconds"][name] = round(time.monotonic() - start, 1)

    def write(self, file: Path) -> None:
        """Write the summary, and say where."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.values, indent=2) + "\n")
        console.print(f"summary in {file}")


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────


def tenora(*arguments: str | Path) -> None:
    """Run the `tenora` command in the foreground."""
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    console.print(f"[dim]$ tenora {' '.join(map(str, arguments))}[/]")
    if subprocess.run(command, cwd=ROOT, check=False, env=_clean_environment()).returncode:
        raise DemoError(f"`tenora {' '.join(map(str, arguments))}` failed")


def train(recipe: str, output: Path, *arguments: str | Path) -> dict[str, Any]:
    """Train by a recipe; return what it reports of itself."""
    task = "instruct" if "instruct" in recipe else "classify"
    tenora("train", task, "--recipe", ROOT / "recipes" / f"{recipe}.toml", "--output", output, *arguments)
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers before and after, without the samples."""
    return {when: results[when]["metrics"] for when in ("before", "after")}


# ── serving ───────────────────────────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(store: Path, log: Path) -> Iterator[str]:
    """A server for as long as the block runs; yields its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", str(port)]
    console.print(f"[dim]$ tenora {' '.join(command[3:])}[/]")
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=_clean_environment())
        try:
            _wait_until_ready(url, process, log)
            console.print(log.read_text().rstrip())
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
    if status:
        raise DemoError(f"the server ended with status {status}; its log is {log}")
    console.print("server stopped on SIGTERM with status 0")


def _clean_environment() -> dict[str, str]:
    """The environment without settings that are meant for something else."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TENORA_")}


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with TenoraClient(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)


def gauge(url: str, name: str) -> int:
    """One figure from the server's /metrics."""
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                return int(sample.value)
    raise DemoError(f"/metrics has no {name}")


# ── the burst ─────────────────────────────────────────────────────────────────────────────────────────────────

Request = Callable[[AsyncTenoraClient], Awaitable[tuple[str, str, str]]]


def burst_requests(base_id: str) -> list[Request]:
    """At least 24 requests that differ in model, task and manner: (model and manner, question, answer)."""
    requests: list[Request] = []
    for i in range(2):
        requests += [_complete(base_id, story) for story in STORIES]
        requests += [_instruct(*pair) for pair in INSTRUCTIONS]
        requests += [_stream(*pair) for pair in INSTRUCTIONS]
        requests += [_classify(review) for review in REVIEWS[i * 3 : i * 3 + 3]]
    return requests


def _complete(base_id: str, story: str) -> Request:
    async def run(client: AsyncTenoraClient) -> tuple[str, str, str]:
        answer = await client.complete(base_id, story, max_tokens=24, temperature=0.0)
        return base_id, story, answer.text

    return run


def _instruct(instruction: str, given: str) -> Request:
    async def run(client: AsyncTenoraClient) -> tuple[str, str, str]:
        answer = await client.instruct(INSTRUCT, instruction, given, max_tokens=32, temperature=0.0)
        return INSTRUCT, f"{instruction} {given}", answer.text

    return run


def _stream(instruction: str, given: str) -> Request:
    async def run(client: AsyncTenoraClient) -> tuple[str, str, str]:
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": given}]
        pieces = [piece async for piece in client.stream(INSTRUCT, messages, max_tokens=32, temperature=0.0)]
        return f"{INSTRUCT} (stream)", f"{instruction} {given}", "".join(pieces)

    return run


def _classify(review: str) -> Request:
    async def run(client: AsyncTenoraClient) -> tuple[str, str, str]:
        (result,) = await client.classify(SENTIMENT, [review])
        return SENTIMENT, review, f"{result.label} ({result.probabilities[result.label]:.2f})"

    return run


async def burst(url: str, base_id: str, summary: Summary) -> None:
    """Send every request at once and show what came back."""
    async with AsyncTenoraClient(url) as client:
        outcomes = await asyncio.gather(
            *(request(client) for request in burst_requests(base_id)), return_exceptions=True
        )
    summary.values["requests"] += len(outcomes)
    table = Table(title=f"{len(outcomes)} requests at once", title_justify="left")
    for column in ("model", "question", "answer"):
        table.add_column(column, overflow="fold")
    seen = set()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            summary.values["errors"] += 1
            table.add_row("[red]error", "", str(outcome))
        elif outcome not in seen:
            seen.add(outcome)
            table.add_row(*(text.strip() for text in outcome))
    console.print(table)


# ── the swap ──────────────────────────────────────────────────────────────────────────────────────────────────


async def swap(url: str, folder: Path, store: Path, summary: Summary) -> None:
    """Publish a new version of the sentiment adapter while requests for it keep coming, then go back."""
    answered: Counter[str] = Counter()
    stop = asyncio.Event()
    with TenoraClient(url) as models:
        before = next(model.root for model in models.models() if model.id == SENTIMENT)
    async with AsyncTenoraClient(url) as client:
        asking = [asyncio.create_task(_keep_asking(client, i, answered, stop, summary)) for i in range(6)]
        await asyncio.sleep(SWAP_SECONDS)
        await asyncio.to_thread(tenora, "adapters", "publish", folder, SENTIMENT, "--store", store)
        await asyncio.sleep(SWAP_SECONDS)
        await asyncio.to_thread(tenora, "adapters", "alias", before, "latest", "--store", store)
        await asyncio.sleep(SWAP_SECONDS)
        stop.set()
        await asyncio.gather(*asking)
    summary.values["swap"] = {"answered_by": dict(answered)}
    for version, count in sorted(answered.items()):
        console.print(f"{count:5d} answers by {version}")
    if sum(name.startswith(f"{SENTIMENT}@") for name in answered) != 2:
        raise DemoError("both versions of the sentiment adapter should have answered")


async def _keep_asking(
    client: AsyncTenoraClient, number: int, answered: Counter[str], stop: asyncio.Event, summary: Summary
) -> None:
    while not stop.is_set():
        summary.values["requests"] += 1
        try:
            if number % 3:
                (result,) = await client.classify(SENTIMENT, [REVIEWS[number]])
                answered[str(result.adapter)] += 1
            else:
                answer = await client.instruct(INSTRUCT, *INSTRUCTIONS[0], max_tokens=16, temperature=0.0)
                answered[str(answer.adapter)] += 1
        except TenoraError as error:
            summary.values["errors"] += 1
            console.print(f"[red]{error.status} {error.message}")


# ── in order ──────────────────────────────────────────────────────────────────────────────────────────────────


def empty(folder: Path) -> None:
    """Make the demo's folder anew; one that holds something else is left alone."""
    ours = {"instruct", "sentiment", "sentiment-next", "store", "server.log"}
    if folder.exists() and any(entry.name not in ours for entry in folder.iterdir()):
        raise DemoError(f"{folder} holds files that are not the demo's: choose another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def run(folder: Path, summary: Summary) -> None:
    """All stages."""
    store = folder / "store"
    empty(folder)
    if (took := ROOT / ".venv" / ".install_seconds").exists():
        summary.values["seconds"]["install"] = int(took.read_text())
    with summary.stage("train_instruct", "1  train an adapter that follows instructions"):
        results = train("demo-instruct", folder / "instruct", "--store", store, "--publish", INSTRUCT)
        summary.values["instruct"] = figures(results)
    with summary.stage("train_sentiment", "2  train an adapter that classifies sentiment"):
        results = train("demo-sentiment", folder / "sentiment", "--store", store, "--publish", SENTIMENT)
        summary.values["sentiment"] = figures(results)
    with summary.stage("train_sentiment_again", "3  train its next version, not published yet"):
        train("demo-sentiment", folder / "sentiment-next", "--seed", "7", "--epochs", "1")
    with summary.stage("serve", "4  one server, one frozen base"), server(store, folder / "server.log") as url:
        with TenoraClient(url) as client:
            base = client.base()
        summary.values["base_hash_before"] = base.weights_sha256
        with summary.stage("burst", "5  base, instruct and sentiment in the same batches"):
            asyncio.run(burst(url, base.id, summary))
            summary.values["max_adapters_in_step"] = gauge(url, "tenora_max_adapters_in_step")
            summary.values["max_kinds_in_step"] = gauge(url, "tenora_max_kinds_in_step")
            console.print(
                f"largest number of distinct adapters that shared one step: {summary.values['max_adapters_in_step']}, "
                f"of task kinds: {summary.values['max_kinds_in_step']}"
            )
        with summary.stage("swap", "6  swap the sentiment adapter under load, and back"):
            asyncio.run(swap(url, folder / "sentiment-next" / "adapter", store, summary))
        with TenoraClient(url) as client:
            summary.values["base_hash_after"] = client.base().weights_sha256
    check(summary.values)


def check(values: dict[str, Any]) -> None:
    """Hold the run against what it promises."""
    if values["errors"]:
        raise DemoError(f"{values['errors']} of {values['requests']} requests failed")
    if values["base_hash_before"] != values["base_hash_after"]:
        raise DemoError("the base's weights changed")
    if values["max_adapters_in_step"] < 2 or values["max_kinds_in_step"] < 2:
        raise DemoError("no step was shared by two adapters and two kinds of work")


def next_steps(store: Path) -> None:
    """What to try now."""
    console.print(
        f"\n[bold]Next[/]\n"
        f"  .venv/bin/tenora serve --store {store}\n"
        f"  .venv/bin/tenora ask {INSTRUCT} 'Rewrite in the passive voice: The cat chased the mouse.'\n"
        f"  .venv/bin/tenora classify {SENTIMENT} 'Better than I had hoped.'\n"
        f"  .venv/bin/tenora train classify --data your_rows.csv --store {store} --publish you/yours\n"
    )


def main() -> None:
    """Run the demo; exit with 1 and one sentence if it did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where its files go (emptied first)")
    args = parser.parse_args()
    summary = Summary()
    try:
        run(args.folder, summary)
    except DemoError as error:
        console.print(f"[bold red]the demo failed:[/] {error}")
        raise SystemExit(1) from None
    finally:
        summary.write(args.folder.parent / "demo.json")
    console.print(f"{summary.values['requests']} requests, no error; the base is unchanged")
    next_steps(args.folder / "store")


if __name__ == "__main__":
    main()
