"""POST /v1/classify and /classify, in vLLM's shape; in LoRAX's for a body with `inputs`."""

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Request
from pydantic import Discriminator, Tag
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.engine.events import ClassifiedEvent
from service.exchange import Exchange, deadline_of
from service.messages import Classify, Prepared
from service.routes.tgi import base_id
from service.schemas import ClassifyRequest
from service.state import state_of
from service.tgi_errors import speak_tgi
from service.tgi_schemas import INPUT, INPUTS, AdapterChoice, TgiClassifyRequest, classify_form

THRESHOLD = 0.5
"""The probability from which on a label holds, where each has one of its own and the request names no other."""


ClassifyBody = Annotated[
    Annotated[ClassifyRequest, Tag(INPUT)] | Annotated[TgiClassifyRequest, Tag(INPUTS)], Discriminator(classify_form)
]


async def classify(request: Request, body: ClassifyBody) -> Response:
    """Say for each text how probable each label of the adapter is."""
    if isinstance(body, TgiClassifyRequest):
        return await _classify_tgi(request, body)
    work = Classify(
        tenant=tenant_of(request),
        model=body.model,
        texts=body.texts,
        deadline=deadline_of(state_of(request).settings, body.timeout),
        threshold=body.threshold,
        sticky=body.user or None,
        priority=body.priority,
    )
    exchange = Exchange(request, work)
    try:
        results = await classified(exchange)
        prepared = exchange.pending.prepared
        assert prepared is not None
        reply = _reply(f"classify-{prepared.request_id}", body.model, prepared, results)
        if prepared.multi_label:
            _select(reply, THRESHOLD if body.threshold is None else body.threshold)
        return JSONResponse(reply, headers=exchange.headers())
    finally:
        exchange.close()


async def _classify_tgi(request: Request, body: TgiClassifyRequest) -> Response:
    speak_tgi(request.scope)
    model = (body.parameters or AdapterChoice.model_validate({})).model(base_id(request))
    deadline = deadline_of(state_of(request).settings, None)
    exchange = Exchange(request, Classify(tenant_of(request), model, body.texts, deadline))
    try:
        results = await classified(exchange)
        prepared = exchange.pending.prepared
        assert prepared is not None
        results.sort(key=lambda result: result.index)
        entities = [
            _entities(text, result.values, prepared.labels) for text, result in zip(body.texts, results, strict=True)
        ]
        reply = entities[0] if isinstance(body.inputs, str) else entities
        return JSONResponse(reply, headers=exchange.headers())
    finally:
        exchange.close()


def _entities(text: str, values: Sequence[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    """LoRAX tells labels of words; here each is one of the whole text, the likeliest first."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return [
        {"entity": labels[place], "score": values[place], "index": place, "word": text, "start": 0, "end": len(text)}
        for place in order
    ]


async def classified(exchange: Exchange) -> list[ClassifiedEvent]:
    """Wait for all of a request's texts."""
    results: list[ClassifiedEvent] = []
    async with aclosing(exchange.outputs()) as outputs:
        async for event in outputs:
            assert isinstance(event, ClassifiedEvent), "a text that goes through a head generates nothing"
            results.append(event)
    return results


def _reply(request_id: str, model: str, prepared: Prepared, results: Sequence[ClassifiedEvent]) -> dict[str, Any]:
    tokens = sum(result.prompt_tokens for result in results)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [_entry(result, prepared.labels) for result in sorted(results, key=lambda result: result.index)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        # Not in vLLM's reply: the names that `probs` are in the order of.
        "labels": list(prepared.labels),
    }


def _entry(result: ClassifiedEvent, labels: Sequence[str]) -> dict[str, Any]:
    probabilities = result.values
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "index": result.index,
        "label": labels[best],
        "probs": list(probabilities),
        "num_classes": len(probabilities),
    }


def _select(reply: dict[str, Any], threshold: float) -> None:
    """Add what a reply about several labels at once has beyond vLLM's: the labels that hold, and from where on."""
    reply["threshold"] = threshold
    for entry in reply["data"]:
        pairs = zip(reply["labels"], entry["probs"], strict=True)
        entry["selected"] = [label for label, probability in pairs if probability >= threshold]
