"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM's clients know them."""

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from service.messages import LoadAdapter, UnloadAdapter
from service.routes.lifecycle import CHECKS_TIMEOUT_S
from service.schemas import LoadAdapterRequest, UnloadAdapterRequest
from service.state import state_of
from service.tenants.caller import caller_of


async def load_lora_adapter(request: Request, body: LoadAdapterRequest) -> Response:
    """Serve an adapter from the store, or import one from an allowed folder."""
    caller = caller_of(request)
    question = LoadAdapter(caller.tenant, body.lora_name, body.lora_path, body.load_inplace, caller.key_id)
    return PlainTextResponse(await state_of(request).client.ask(question, CHECKS_TIMEOUT_S))


async def unload_lora_adapter(request: Request, body: UnloadAdapterRequest) -> Response:
    """Stop serving an adapter; requests in flight finish, and its versions stay in the store."""
    caller = caller_of(request)
    question = UnloadAdapter(caller.tenant, body.lora_name, caller.key_id)
    return PlainTextResponse(await state_of(request).client.ask(question))
