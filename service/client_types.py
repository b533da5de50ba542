"""What the clients give and take, and how it is read from the wire; shared by the sync and the async one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import httpx


class SamplingOptions(TypedDict):
    """How an answer is written; all are optional."""

    max_tokens: NotRequired[int]
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]
    min_p: NotRequired[float]
    repetition_penalty: NotRequired[float]
    presence_penalty: NotRequired[float]
    frequency_penalty: NotRequired[float]
    stop: NotRequired[str | list[str]]
    seed: NotRequired[int]
    ignore_eos: NotRequired[bool]
    timeout: NotRequired[float]


class TenoraError(Exception):
    """The server refused, failed, or could not be reached (``status`` 0)."""

    def __init__(self, status: int, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Answer:
    """A written answer. ``adapter`` and ``tier`` say what answered and where its weights were."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    adapter: str | None
    tier: str | None


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of a text by probability; ``label`` is the likeliest. ``adapter`` says what answered.

    ``selected`` are the labels that hold, for an adapter with several at once; None for one that gives one label.
    """

    label: str
    probabilities: Mapping[str, float]
    adapter: str | None
    selected: tuple[str, ...] | None = None


class ScoreItem(TypedDict):
    """An answer to be scored, with one of: a prompt, a conversation, an instruction (perhaps with its input)."""

    answer: str
    prompt: NotRequired[str]
    messages: NotRequired[Sequence[Mapping[str, str]]]
    instruction: NotRequired[str]
    input: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward model has for an answer; only differences between answers mean something."""

    score: float
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the key may use; ``root`` is exactly what a request would get now."""

    id: str
    root: str
    parent: str | None
    owner: str
    task: str | None
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Base:
    """The frozen base; the hash is over its weights as they are in the server's memory."""

    id: str
    fingerprint: str
    kind: str
    max_model_len: int
    weights_sha256: str


Messages = str | Sequence[Mapping[str, str]]


@contextmanager
def reachable() -> Iterator[None]:
    """Turn what can go wrong on the way into a TenoraError."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TenoraError(0, "timeout", f"the server at {_place(error)} did not answer in time") from error
    except httpx.ConnectError as error:
        raise TenoraError(0, "unreachable", f"there is no server at {_place(error)}: start `tenora serve`") from error
    except httpx.InvalidURL as error:
        raise TenoraError(0, "invalid_url", f"{error}: give the server's URL as http://host:port") from error
    except httpx.TransportError as error:
        raise TenoraError(0, "transport", f"the connection broke: {error}") from error


def _place(error: httpx.RequestError) -> str:
    return f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"


def check(response: httpx.Response) -> httpx.Response:
    """Raise what the server refused with."""
    if response.is_success:
        return response
    try:
        raise _error(response.status_code, response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code}, and not as Tenora does"
        raise TenoraError(response.status_code, None, message) from None


def _error(status: int, error: Mapping[str, Any]) -> TenoraError:
    return TenoraError(status, error.get("code"), str(error["message"]), error.get("param"))


def headers(api_key: str | None) -> dict[str, str]:
    """The headers that carry a key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def turns(messages: Messages) -> list[Mapping[str, str]]:
    """Messages as the wire wants them."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def inputs(texts: str | Sequence[str]) -> str | list[str]:
    """Texts as the wire wants them."""
    return texts if isinstance(texts, str) else list(texts)


def items(scored: ScoreItem | Sequence[ScoreItem]) -> Mapping[str, Any] | list[ScoreItem]:
    """Answers to be scored as the wire wants them."""
    return scored if isinstance(scored, Mapping) else list(scored)


def threshold_field(threshold: float | None) -> dict[str, float]:
    """The threshold as the wire wants it: not at all where none was given."""
    return {} if threshold is None else {"threshold": threshold}


def read_answer(response: httpx.Response) -> Answer:
    """A written answer from any of the three routes."""
    body = response.json()
    choice, usage = body["choices"][0], body["usage"]
    return Answer(
        text=choice["message"]["content"] if "message" in choice else choice["text"],
        finish_reason=choice["finish_reason"],
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        adapter=response.headers.get("x-tenora-adapter"),
        tier=response.headers.get("x-tenora-tier"),
    )


class Lines:
    """Cuts a stream of text into lines, at line feeds only: an answer may hold other characters that end a line."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The lines that ``text`` completes."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [line.removesuffix("\r") for line in lines]


def read_texts(lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    """The pieces of text in lines of server-sent events."""
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise _error(200, event["error"])
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def read_classifications(response: httpx.Response) -> list[Classification]:
    """One result per text."""
    body = response.json()
    adapter = response.headers.get("x-tenora-adapter")
    return [
        Classification(
            label=entry["label"],
            probabilities=dict(zip(body["labels"], entry["probs"], strict=True)),
            adapter=adapter,
            selected=tuple(entry["selected"]) if "selected" in entry else None,
        )
        for entry in body["data"]
    ]


def read_scores(response: httpx.Response) -> list[Score]:
    """One result per answer."""
    adapter = response.headers.get("x-tenora-adapter")
    return [Score(entry["score"], adapter) for entry in response.json()["data"]]


def read_model(entry: Mapping[str, Any]) -> Model:
    """One entry of the list of models."""
    return Model(
        id=entry["id"],
        root=entry["root"],
        parent=entry["parent"],
        owner=entry["owned_by"],
        task=entry["task"],
        max_model_len=entry["max_model_len"],
    )
