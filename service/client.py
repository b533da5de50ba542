"""A small typed client of the service, sync and async.

with TenoraClient("http://127.0.0.1:8000") as client:
    print(client.chat("acme/support", "Where is my parcel?").text)
    for piece in client.stream("acme/support", "Where is my parcel?"):
        print(piece, end="")
    print(client.classify("acme/sentiment", ["lovely", "dull"])[0].label)
    print(client.upload(Path("runs/support"), "acme/support").digest)
    print(client.score("acme/reward", {"prompt": "Where is my parcel?", "answer": "It left today."})[0].score)
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from service.client_lifecycle import AdapterVersion, LifecycleClient
from service.client_types import (
    Answer,
    Base,
    Classification,
    Lines,
    Messages,
    Model,
    SamplingOptions,
    Score,
    ScoreItem,
    TenoraError,
    check,
    headers,
    inputs,
    items,
    reachable,
    read_answer,
    read_classifications,
    read_model,
    read_scores,
    read_texts,
    threshold_field,
    turns,
)

__all__ = [
    "AdapterVersion",
    "Answer",
    "AsyncTenoraClient",
    "Base",
    "Classification",
    "Model",
    "Score",
    "ScoreItem",
    "TenoraClient",
    "TenoraError",
]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 150.0

CHAT, COMPLETIONS, INSTRUCT = "/v1/chat/completions", "/v1/completions", "/v1/instruct"
CLASSIFY, SCORE, MODELS, BASE = "/v1/classify", "/v1/score", "/v1/models", "/v1/base"


class TenoraClient(LifecycleClient):
    """Talks to one server; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        with reachable():
            self._http = httpx.Client(base_url=url, headers=headers(api_key), timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(self, model: str, messages: Messages, **options: Unpack[SamplingOptions]) -> Answer:
        """Answer a conversation; a plain string is one user message."""
        return read_answer(self._post(CHAT, {"model": model, "messages": turns(messages), **options}))

    def complete(self, model: str, prompt: str, **options: Unpack[SamplingOptions]) -> Answer:
        """Continue a text as it stands."""
        return read_answer(self._post(COMPLETIONS, {"model": model, "prompt": prompt, **options}))

    def instruct(self, model: str, instruction: str, input: str = "", **options: Unpack[SamplingOptions]) -> Answer:  # noqa: A002
        """Follow an instruction."""
        return read_answer(
            self._post(INSTRUCT, {"model": model, "instruction": instruction, "input": input, **options})
        )

    def stream(self, model: str, messages: Messages, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """Answer a conversation piece by piece."""
        body = {"model": model, "messages": turns(messages), "stream": True, **options}
        with reachable(), self._http.stream("POST", CHAT, json=body) as response:
            if response.is_error:
                response.read()
            check(response)
            lines = Lines()
            for text in response.iter_text():
                yield from read_texts(lines.feed(text))

    def classify(
        self, model: str, texts: str | Sequence[str], *, threshold: float | None = None
    ) -> list[Classification]:
        """Classify one or several texts; the threshold is for adapters with several labels at once."""
        body = {"model": model, "input": inputs(texts), **threshold_field(threshold)}
        return read_classifications(self._post(CLASSIFY, body))

    def score(self, model: str, scored: ScoreItem | Sequence[ScoreItem]) -> list[Score]:
        """Score one or several answers."""
        return read_scores(self._post(SCORE, {"model": model, "items": items(scored)}))

    def models(self) -> list[Model]:
        """The base and the adapters that the key may use."""
        return [read_model(entry) for entry in self._get(MODELS).json()["data"]]

    def base(self) -> Base:
        """The base, its weights hashed now."""
        return Base(**self._get(BASE).json())

    def ready(self) -> bool:
        """Whether the server can be reached and its engine answers."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        with reachable():
            return check(self._http.post(path, json=body))

    def _get(self, path: str) -> httpx.Response:
        with reachable():
            return check(self._http.get(path))


class AsyncTenoraClient:
    """The same, for asyncio."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        with reachable():
            self._http = httpx.AsyncClient(base_url=url, headers=headers(api_key), timeout=timeout, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(self, model: str, messages: Messages, **options: Unpack[SamplingOptions]) -> Answer:
        """Answer a conversation; a plain string is one user message."""
        return read_answer(await self._post(CHAT, {"model": model, "messages": turns(messages), **options}))

    async def complete(self, model: str, prompt: str, **options: Unpack[SamplingOptions]) -> Answer:
        """Continue a text as it stands."""
        return read_answer(await self._post(COMPLETIONS, {"model": model, "prompt": prompt, **options}))

    async def instruct(
        self,
        model: str,
        instruction: str,
        input: str = "",  # noqa: A002
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Follow an instruction."""
        body = {"model": model, "instruction": instruction, "input": input, **options}
        return read_answer(await self._post(INSTRUCT, body))

    async def stream(self, model: str, messages: Messages, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        """Answer a conversation piece by piece."""
        body = {"model": model, "messages": turns(messages), "stream": True, **options}
        with reachable():
            async with self._http.stream("POST", CHAT, json=body) as response:
                if response.is_error:
                    await response.aread()
                check(response)
                lines = Lines()
                async for text in response.aiter_text():
                    for piece in read_texts(lines.feed(text)):
                        yield piece

    async def classify(
        self, model: str, texts: str | Sequence[str], *, threshold: float | None = None
    ) -> list[Classification]:
        """Classify one or several texts; the threshold is for adapters with several labels at once."""
        body = {"model": model, "input": inputs(texts), **threshold_field(threshold)}
        return read_classifications(await self._post(CLASSIFY, body))

    async def score(self, model: str, scored: ScoreItem | Sequence[ScoreItem]) -> list[Score]:
        """Score one or several answers."""
        return read_scores(await self._post(SCORE, {"model": model, "items": items(scored)}))

    async def models(self) -> list[Model]:
        """The base and the adapters that the key may use."""
        return [read_model(entry) for entry in (await self._get(MODELS)).json()["data"]]

    async def base(self) -> Base:
        """The base, its weights hashed now."""
        return Base(**(await self._get(BASE)).json())

    async def ready(self) -> bool:
        """Whether the server can be reached and its engine answers."""
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        with reachable():
            return check(await self._http.post(path, json=body))

    async def _get(self, path: str) -> httpx.Response:
        with reachable():
            return check(await self._http.get(path))
