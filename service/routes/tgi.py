"""POST /generate, /generate_stream and /, as clients of Text Generation Inference and LoRAX know them."""

import secrets
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.engine.sampling import SamplingParams
from service.errors import EngineUnavailableError, InvalidRequestError
from service.exchange import EventStream, Exchange, deadline_of
from service.messages import Generate, TextPrompt
from service.state import state_of
from service.tgi import TgiAnswer
from service.tgi_schemas import TgiParameters, TgiRequest


async def tgi_generate(request: Request, body: TgiRequest) -> Response:
    """Continue a text, the answer as a whole."""
    if body.stream:
        raise InvalidRequestError("'stream' is for POST /: call /generate_stream instead.", param="stream")
    content, headers = await _whole(request, body)
    return JSONResponse(content, headers=headers)


async def tgi_generate_stream(request: Request, body: TgiRequest) -> Response:
    """Continue a text, an event for each token."""
    if body.stream is False:
        raise InvalidRequestError("'stream' is for POST /: call /generate instead.", param="stream")
    return await _streamed(request, body)


async def tgi_either(request: Request, body: TgiRequest) -> Response:
    """Continue a text, as a whole (in a list of one) or as a stream."""
    if body.stream:
        return await _streamed(request, body)
    content, headers = await _whole(request, body)
    return JSONResponse([content], headers=headers)


async def _whole(request: Request, body: TgiRequest) -> tuple[dict[str, Any], dict[str, str]]:
    exchange, answer = _begin(request, body, stream=False)
    try:
        return await answer.whole(), exchange.headers()
    finally:
        exchange.close()


async def _streamed(request: Request, body: TgiRequest) -> Response:
    exchange, answer = _begin(request, body, stream=True)
    try:
        return EventStream(await answer.begin(), exchange)
    except BaseException:
        exchange.close()
        raise


def _begin(request: Request, body: TgiRequest, *, stream: bool) -> tuple[Exchange, TgiAnswer]:
    state, how = state_of(request), body.how
    seed = None
    if how.samples:
        seed = secrets.randbelow(1 << 63) if how.seed is None else how.seed
    work = Generate(
        tenant=tenant_of(request),
        model=how.model(base_id(request)),
        prompts=(TextPrompt(body.inputs),),
        n=1,
        sampling=_sampling(how, seed, reported=stream or bool(how.details)),
        max_tokens=how.max_new_tokens,
        default_max_tokens=state.settings.default_max_tokens,
        deadline=deadline_of(state.settings, None),
        stream=stream,
    )
    exchange = Exchange(request, work)
    return exchange, TgiAnswer(exchange, how, body.inputs, seed)


def base_id(request: Request) -> str:
    """The base's name.

    Raises:
        EngineUnavailableError: No engine process has told it yet.
    """
    base = state_of(request).client.base
    if base is None:
        raise EngineUnavailableError("The engine is not ready.", retry_after=2)
    return base.id


def _sampling(how: TgiParameters, seed: int | None, *, reported: bool) -> SamplingParams:
    """Theirs in our terms; ``seed`` is None where nothing is drawn."""
    given = {
        "temperature": 0.0 if seed is None else how.temperature,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "repetition_penalty": how.repetition_penalty,
        "frequency_penalty": how.frequency_penalty,
        "ignore_eos": how.ignore_eos_token,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    alternatives = max(how.top_n_tokens or 0, how.return_k_alternatives or 0)
    return SamplingParams(**chosen, seed=seed, stop=tuple(how.stop or ()), logprobs=alternatives if reported else None)
