"""POST /v1/instruct."""

from fastapi import Request
from starlette.responses import Response

from service.formats import INSTRUCT
from service.generation import generate
from service.messages import InstructPrompt
from service.schemas import InstructRequest


async def instruct(request: Request, body: InstructRequest) -> Response:
    """Follow an instruction; the adapter's own template renders it."""
    prompt = InstructPrompt(body.instruction, body.input)
    return await generate(request, body, [prompt], INSTRUCT, max_tokens=body.max_tokens, logprobs=body.logprobs)
