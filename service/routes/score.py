"""POST /v1/score."""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.engine.events import ClassifiedEvent
from service.exchange import Exchange, deadline_of
from service.messages import ChatPrompt, InstructPrompt, Score, ScoredAnswer
from service.routes.classify import classified
from service.schemas import ScoreItem, ScoreRequest
from service.state import state_of


async def score(request: Request, body: ScoreRequest) -> Response:
    """Give each answer the number that the adapter, a reward model, has for it."""
    work = Score(
        tenant=tenant_of(request),
        model=body.model,
        items=items_of(body),
        sticky=body.user or None,
        deadline=deadline_of(state_of(request).settings, body.timeout),
        priority=body.priority,
    )
    exchange = Exchange(request, work)
    try:
        results = await classified(exchange)
        reply = _reply(f"score-{exchange.pending.request_id}", body.model, results)
        return JSONResponse(reply, headers=exchange.headers())
    finally:
        exchange.close()


def items_of(body: ScoreRequest) -> tuple[ScoredAnswer, ...]:
    """The answers, each knowing its place in the request."""
    if isinstance(body.items, ScoreItem):
        return (_answer(body.items, "items"),)
    return tuple(_answer(item, f"items[{index}]") for index, item in enumerate(body.items))


def _answer(item: ScoreItem, field: str) -> ScoredAnswer:
    if item.messages is not None:
        return ScoredAnswer(ChatPrompt(tuple(message.turn for message in item.messages)), item.answer, field)
    return ScoredAnswer(InstructPrompt(item.instruction or item.prompt or "", item.input or ""), item.answer, field)


def _reply(request_id: str, model: str, results: Sequence[ClassifiedEvent]) -> dict[str, Any]:
    tokens = sum(result.prompt_tokens for result in results)
    ordered = sorted(results, key=lambda result: result.index)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": result.index, "score": result.values[0]} for result in ordered],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }
