"""Everything the three routes that write have in common: the request to the engine, the answer whole or streamed."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.engine.events import FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine_client import Output
from service.errors import ReportedError
from service.exchange import EventStream, Exchange, deadline_of
from service.formats import AnswerFormat, Choice
from service.messages import Generate, Prompt
from service.schemas import GREEDY_BELOW, Sampling
from service.state import state_of

DONE = b"data: [DONE]\n\n"


async def generate(
    request: Request,
    body: Sampling,
    prompts: Sequence[Prompt],
    form: AnswerFormat,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> Response:
    """Answer a request to write.

    Args:
        request: The HTTP request.
        body: Its fields.
        prompts: What to answer.
        form: The shape of the answer.
        max_tokens: Longest answer; None leaves it to the context and to the server's default.
        logprobs: Alternatives to report per token; None reports nothing.
    """
    settings = state_of(request).settings
    work = Generate(
        tenant=tenant_of(request),
        model=body.model,
        prompts=tuple(prompts),
        n=body.n or 1,
        sampling=_sampling(body, logprobs),
        max_tokens=max_tokens,
        default_max_tokens=settings.default_max_tokens,
        deadline=deadline_of(settings, body.timeout),
        stream=bool(body.stream),
        sticky=body.user or None,
        priority=body.priority,
    )
    exchange = Exchange(request, work)
    answer = Answer(exchange, form, body.model, work.weight, work.n)
    if not body.stream:
        try:
            return await answer.whole()
        finally:
            exchange.close()
    try:
        chunks = await answer.begin(include_usage=body.stream_options is not None and body.stream_options.include_usage)
        return EventStream(chunks, exchange)
    except BaseException:
        exchange.close()
        raise


class Answer:
    """One answer while it is written."""

    def __init__(self, exchange: Exchange, form: AnswerFormat, model: str, count: int, n: int) -> None:
        self._exchange = exchange
        self._form = form
        self._n = n
        self._choices = [Choice() for _ in range(count)]
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._head = {
            "id": f"{form.id_prefix}-{exchange.pending.request_id}",
            "object": form.object,
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self) -> Response:
        """Wait for every choice and answer with one body."""
        async with aclosing(self._exchange.outputs()) as outputs:
            async for event in outputs:
                self._take(event)
        choices = [self._form.whole(index, choice) for index, choice in enumerate(self._choices)]
        body = {**self._head, "choices": choices, "usage": self._usage()}
        return JSONResponse(body, headers=self._exchange.headers())

    async def begin(self, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Wait for the first event, which decides the HTTP status, and return the stream that it begins."""
        outputs = self._exchange.outputs()
        first = await anext(outputs)
        self._head["object"] = self._form.chunk_object
        return self._chunks(first, outputs, include_usage=include_usage)

    async def _chunks(
        self, first: Output, outputs: AsyncIterator[Output], *, include_usage: bool
    ) -> AsyncIterator[bytes]:
        usage: dict[str, Any] = {"usage": None} if include_usage else {}
        for index in range(len(self._choices)):
            if (opening := self._form.opening(index)) is not None:
                yield self._chunk([opening], usage)
        try:
            for choice in self._pieces(first):
                yield self._chunk([choice], usage)
            async for event in outputs:
                for choice in self._pieces(event):
                    yield self._chunk([choice], usage)
        except ReportedError as error:
            # The status is sent already; all that is left is to say so in the stream, which then has no [DONE].
            yield b"event: error\n" + _event(error.detail().body())
            return
        if include_usage:
            yield self._chunk([], {"usage": self._usage()})
        yield DONE

    def _pieces(self, event: Output) -> list[dict[str, Any]]:
        self._take(event)
        if isinstance(event, TokenEvent):
            logprobs = self._new_logprobs(event)
            return [self._form.piece(event.index, event.text, logprobs)] if event.text or logprobs else []
        return [self._form.closing(event.index, event.reason)] if isinstance(event, FinishedEvent) else []

    def _new_logprobs(self, event: TokenEvent) -> dict[str, Any] | None:
        if not event.logprobs:
            return None
        choice = self._choices[event.index]
        return self._form.logprobs(choice, len(choice.logprobs) - len(event.logprobs))

    def _take(self, event: Output) -> None:
        if isinstance(event, TokenEvent):
            self._choices[event.index].add(event.text, event.logprobs or ())
        if not isinstance(event, FinishedEvent):
            return
        self._choices[event.index].reason = event.reason
        self._completion_tokens += event.completion_tokens
        if event.index % self._n == 0:  # a prompt counts once, however many answers it gets
            self._prompt_tokens += event.prompt_tokens
            self._cached_tokens += event.cached_tokens

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }

    def _chunk(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> bytes:
        return _event({**self._head, "choices": choices, **extra})


def _event(body: dict[str, Any]) -> bytes:
    # ASCII, because some clients end a line at U+2028 or U+0085, which JSON leaves as they are.
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _sampling(body: Sampling, logprobs: int | None) -> SamplingParams:
    given = {
        "temperature": 0.0 if body.temperature is not None and body.temperature < GREEDY_BELOW else body.temperature,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "ignore_eos": body.ignore_eos,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**chosen, seed=body.seed, stop=body.stops, logprobs=logprobs)
