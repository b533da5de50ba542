"""POST /v1/completions."""

from fastapi import Request
from starlette.responses import Response

from service.formats import COMPLETION
from service.generation import generate
from service.messages import Prompt, TextPrompt, TokenPrompt
from service.schemas import CompletionRequest

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default."""


async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue one or several prompts as they stand, without a template."""
    return await generate(
        request,
        body,
        prompts_of(body),
        COMPLETION,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
    )


def prompts_of(body: CompletionRequest) -> list[Prompt]:
    """A prompt is a text, a list of token ids, or a list of either."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    if ids := [token for token in prompt if isinstance(token, int)]:
        return [TokenPrompt(tuple(ids))]
    return [_one(item) for item in prompt if not isinstance(item, int)]


def _one(prompt: str | list[int]) -> Prompt:
    return TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(tuple(prompt))
