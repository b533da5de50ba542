"""GET /info and /health, as Text Generation Inference and LoRAX have them. Neither asks the engine anything."""

from importlib.metadata import version

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.errors import EngineUnavailableError
from service.schemas import MAX_STOPS
from service.state import state_of


async def info(request: Request) -> Response:
    """What is served, and its limits."""
    state = state_of(request)
    base, settings = state.client.base, state.settings
    if base is None:
        raise EngineUnavailableError("The engine is not ready.", retry_after=2)
    body = {
        "model_id": base.id,
        "model_sha": base.fingerprint,
        "model_dtype": settings.dtype,
        "model_device_type": settings.device,
        "model_pipeline_tag": "text-generation" if base.kind == "decoder" else "text-classification",
        "max_concurrent_requests": settings.max_queue,
        "max_best_of": 1,
        "max_stop_sequences": MAX_STOPS,
        "max_input_length": base.max_model_len - 1,
        "max_input_tokens": base.max_model_len - 1,
        "max_total_tokens": base.max_model_len,
        "max_batch_prefill_tokens": settings.max_step_tokens,
        "version": version("tenora"),
        "sha": None,
        "docker_label": None,
    }
    return JSONResponse(body)


async def health(request: Request) -> Response:
    """200 while the engine answers, else 503."""
    if state_of(request).client.ready:
        return Response()
    return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)
