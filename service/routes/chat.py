"""POST /v1/chat/completions."""

from fastapi import Request
from starlette.responses import Response

from service.formats import CHAT
from service.generation import generate
from service.messages import ChatPrompt
from service.schemas import ChatRequest


async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation, as OpenAI's chat completions do."""
    prompt = ChatPrompt(tuple(message.turn for message in body.messages))
    return await generate(
        request,
        body,
        [prompt],
        CHAT,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
