"""POST /v1/classify and /classify, in vLLM's shape."""

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.engine.events import ClassifiedEvent
from service.exchange import Exchange, deadline_of
from service.messages import Classify
from service.schemas import ClassifyRequest
from service.state import state_of


async def classify(request: Request, body: ClassifyRequest) -> Response:
    """Say for each text how probable each label of the adapter is."""
    work = Classify(
        tenant=tenant_of(request),
        model=body.model,
        texts=body.texts,
        deadline=deadline_of(state_of(request).settings, body.timeout),
    )
    exchange = Exchange(request, work)
    try:
        results: list[ClassifiedEvent] = []
        async with aclosing(exchange.outputs()) as outputs:
            async for event in outputs:
                assert isinstance(event, ClassifiedEvent), "a text to classify generates nothing"
                results.append(event)
        assert exchange.pending.prepared is not None
        labels = exchange.pending.prepared.labels
        reply = _reply(f"classify-{exchange.pending.request_id}", body.model, labels, results)
        return JSONResponse(reply, headers=exchange.headers(results[-1].tier))
    finally:
        exchange.close()


def _reply(request_id: str, model: str, labels: Sequence[str], results: Sequence[ClassifiedEvent]) -> dict[str, Any]:
    tokens = sum(result.prompt_tokens for result in results)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [_entry(result, labels) for result in sorted(results, key=lambda result: result.index)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        # Not in vLLM's reply: the names that `probs` are in the order of.
        "labels": list(labels),
    }


def _entry(result: ClassifiedEvent, labels: Sequence[str]) -> dict[str, Any]:
    probabilities = result.probabilities
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "index": result.index,
        "label": labels[best],
        "probs": list(probabilities),
        "num_classes": len(probabilities),
    }
