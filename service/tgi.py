"""An answer in the shape of Text Generation Inference, which LoRAX shares: whole, or an event for each token."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from service.engine.events import Alternative, FinishedEvent, TokenEvent, TokenLogprob
from service.engine_client import Output
from service.errors import ReportedError
from service.exchange import Exchange
from service.tgi_errors import TgiError
from service.tgi_schemas import TgiParameters


class TgiAnswer:
    """One answer while it is written.

    Args:
        exchange: The submitted request, of one sequence.
        how: Its parameters.
        prompt: What the answer begins with if the request asked for the full text.
        seed: The seed it is drawn with; None if nothing is drawn.
    """

    def __init__(self, exchange: Exchange, how: TgiParameters, prompt: str, seed: int | None) -> None:
        self._exchange = exchange
        self._how = how
        self._seed = seed
        self._text = [prompt] if how.return_full_text else []
        self._tokens: list[TokenLogprob] = []
        self._finished: FinishedEvent | None = None

    async def whole(self) -> dict[str, Any]:
        """Wait for the end and return the body."""
        async with aclosing(self._exchange.outputs()) as outputs:
            async for event in outputs:
                self._take(event)
        body: dict[str, Any] = {"generated_text": "".join(self._text)}
        if self._how.details:
            body["details"] = self._details()
        return body

    async def begin(self) -> AsyncIterator[bytes]:
        """Wait for the first event, which decides the HTTP status, and return the stream that it begins."""
        outputs = self._exchange.outputs()
        return self._events(await anext(outputs), outputs)

    async def _events(self, first: Output, outputs: AsyncIterator[Output]) -> AsyncIterator[bytes]:
        """An event per token. The last one tells the end as well, so a token waits for an end that came along."""
        held: dict[str, Any] | None = None
        try:
            async for event in _chain(first, outputs):
                self._take(event)
                if not isinstance(event, TokenEvent):
                    continue
                if held is not None:
                    yield _sse(held)
                held = self._piece(event)
                if not self._exchange.more:
                    yield _sse(held)
                    held = None
        except ReportedError as error:
            # The status is sent already; their streams say so in an event like any other.
            if held is not None:
                yield _sse(held)
            yield _sse(TgiError.of(error.detail()).body)
        else:
            yield _sse(self._last(held))

    def _take(self, event: Output) -> None:
        if isinstance(event, TokenEvent):
            self._text.append(event.text)
            self._tokens += event.logprobs or ()
        elif isinstance(event, FinishedEvent):
            self._finished = event

    def _piece(self, event: TokenEvent) -> dict[str, Any]:
        """An event of a stream. The texts of its tokens add up to the answer, so they may lag behind the tokens."""
        token = self._tokens[-1]
        piece: dict[str, Any] = {
            "index": len(self._tokens),
            "token": {**self._token(token), "text": event.text},
            "generated_text": None,
            "details": None,
        }
        return {**piece, "top_tokens": _top(token)} if self._how.top_n_tokens else piece

    def _last(self, held: dict[str, Any] | None) -> dict[str, Any]:
        token = {**self._token(self._tokens[-1]), "text": ""} if held is None else held["token"]
        if self._ended_by_token and not token["text"]:
            token = {**token, "text": self._tokens[-1].token, "special": True}
        last = {"index": len(self._tokens), **(held or {}), "token": token, "generated_text": "".join(self._text)}
        details = self._summary() if self._how.details else None
        return {**last, "details": details}

    def _details(self) -> dict[str, Any]:
        tokens = [self._token(token) for token in self._tokens]
        if self._ended_by_token:
            tokens[-1]["special"] = True
        details = {**self._summary(), "prefill": [], "tokens": tokens}
        return {**details, "top_tokens": [_top(token) for token in self._tokens]} if self._how.top_n_tokens else details

    def _summary(self) -> dict[str, Any]:
        assert self._finished is not None, "an answer is described when it is finished"
        return {
            "finish_reason": self._reason(),
            "prompt_tokens": self._finished.prompt_tokens,
            "input_length": self._finished.prompt_tokens,
            "generated_tokens": self._finished.completion_tokens,
            "seed": self._seed,
        }

    def _reason(self) -> str:
        assert self._finished is not None
        if self._finished.reason == "length":
            return "length"
        return "eos_token" if self._ended_by_token else "stop_sequence"

    @property
    def _ended_by_token(self) -> bool:
        """Whether an end token ended the answer, rather than its length or a stop text."""
        finished = self._finished
        return finished is not None and finished.reason == "stop" and not finished.by_stop_text

    def _token(self, token: TokenLogprob) -> dict[str, Any]:
        shown: dict[str, Any] = {**_plain(token), "special": False}
        if self._how.return_k_alternatives:
            shown["alternative_tokens"] = [_plain(other) for other in token.top[: self._how.return_k_alternatives]]
        return shown


def _plain(token: TokenLogprob | Alternative) -> dict[str, Any]:
    return {"id": token.token_id, "text": token.token, "logprob": token.logprob}


def _top(token: TokenLogprob) -> list[dict[str, Any]]:
    return [{**_plain(other), "special": False} for other in token.top]


async def _chain(first: Output, rest: AsyncIterator[Output]) -> AsyncIterator[Output]:
    yield first
    async for event in rest:
        yield event


def _sse(body: Mapping[str, Any]) -> bytes:
    # ASCII, because some clients end a line at U+2028 or U+0085, which JSON leaves as they are.
    return b"data:" + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
