"""The shapes of answers: chat, completions and instruct differ here and nowhere else."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.engine.events import TokenLogprob


@dataclass(slots=True)
class Choice:
    """One answer as far as it is written."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None
    offsets: list[int] = field(default_factory=list)
    """Where each token of ``logprobs`` begins in the text, for the old form of log-probabilities."""
    length: int = 0
    """Characters written so far."""

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        """Append what the engine wrote.

        A token begins where the text that was written before it ends. What a token says of itself is no measure of
        that: a part of a character, or a token that is left out of the text, says more than it adds.
        """
        begin, end = self.length, self.length + len(text)
        for token in logprobs:
            self.offsets.append(begin)
            begin = min(begin + len(token.token), end)
        self.logprobs.extend(logprobs)
        self.text.append(text)
        self.length = end


class AnswerFormat(ABC):
    """How one route writes an answer, whole and in chunks."""

    id_prefix: str
    object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """A chunk before the first text of a choice, if the route has one."""
        return None

    @abstractmethod
    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A choice in a chunk that brings text."""

    @abstractmethod
    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """A choice in the chunk that ends it."""

    @abstractmethod
    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any]:
        """Log-probabilities of the choice's tokens from ``start`` on."""


class ChatFormat(AnswerFormat):
    """OpenAI's chat completions."""

    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """The role comes first."""
        return _chunk(index, {"role": "assistant", "content": ""}, None)

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice with its message."""
        message = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
        logprobs = self.logprobs(choice) if choice.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A delta with content."""
        return {**_chunk(index, {"content": text}, None), "logprobs": logprobs}

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """An empty delta with the reason."""
        return _chunk(index, {}, reason)

    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any]:
        """One entry per token, alternatives nested."""
        return {"content": [self._token(token) for token in choice.logprobs[start:]], "refusal": None}

    @staticmethod
    def _token(token: TokenLogprob) -> dict[str, Any]:
        return {
            "token": token.token,
            "logprob": token.logprob,
            "bytes": list(token.bytes),
            "top_logprobs": [
                {"token": other.token, "logprob": other.logprob, "bytes": list(other.bytes)} for other in token.top
            ],
        }


class TextFormat(AnswerFormat):
    """OpenAI's completions; instruct has the same choices under a name of its own."""

    def __init__(self, id_prefix: str, name: str, chunk_name: str) -> None:
        self.id_prefix, self.object, self.chunk_object = id_prefix, name, chunk_name

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice with its text."""
        logprobs = self.logprobs(choice) if choice.logprobs else None
        return {"index": index, "text": "".join(choice.text), "logprobs": logprobs, "finish_reason": choice.reason}

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A choice with the new text."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """A choice without text."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any]:
        """Parallel lists, the alternatives as {token: logprob}."""
        tokens = choice.logprobs[start:]
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.token: other.logprob for other in token.top} for token in tokens],
            "text_offset": choice.offsets[start:],
        }


def _chunk(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


CHAT = ChatFormat()
COMPLETION = TextFormat("cmpl", "text_completion", "text_completion")
INSTRUCT = TextFormat("instruct", "instruct", "instruct.chunk")
