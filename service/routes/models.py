"""GET /v1/models, /v1/models/{id} and /v1/base."""

from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.messages import DescribeBase, ListModels, ModelInfo, ShowModel
from service.state import state_of


async def list_models(request: Request) -> Response:
    """The base and the adapters that the key may use."""
    models: list[ModelInfo] = await state_of(request).client.ask(ListModels(tenant_of(request)))
    return JSONResponse({"object": "list", "data": [_entry(model) for model in models]})


async def show_model(request: Request, model_id: str) -> Response:
    """One model; an alias or a digest in the name is resolved, `root` holds what it stands for."""
    model: ModelInfo = await state_of(request).client.ask(ShowModel(tenant_of(request), model_id))
    return JSONResponse(_entry(model))


async def show_base(request: Request) -> Response:
    """The frozen base, its weights hashed as they are in memory now."""
    base, digest = await state_of(request).client.ask(DescribeBase())
    return JSONResponse(
        {
            "id": base.id,
            "fingerprint": base.fingerprint,
            "kind": base.kind,
            "max_model_len": base.max_model_len,
            "weights_sha256": digest,
        }
    )


def _entry(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner,
        "root": model.root,
        "parent": model.parent,
        "task": model.task,
        "max_model_len": model.max_model_len,
        "permission": [_permission(model)],
    }


def _permission(model: ModelInfo) -> dict[str, Any]:
    # Old clients of OpenAI's interface insist on the object; what it says is fixed.
    return {
        "id": f"modelperm-{model.id}",
        "object": "model_permission",
        "created": model.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": model.owner,
        "group": None,
        "is_blocking": False,
    }
