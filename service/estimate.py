"""How many tokens a request may take, guessed before anything is tokenised, for limits that are settled later."""

from service.messages import ChatPrompt, Classify, Generate, InstructPrompt, Prompt, TextPrompt, TokenPrompt, Work

CHARACTERS = 4
"""Of a token, about."""


def estimated_tokens(work: Work) -> int:
    """Prompts and texts by their characters, and the longest answers that may come."""
    match work:
        case Generate():
            longest = work.max_tokens or work.default_max_tokens
            return sum(_prompt(prompt) for prompt in work.prompts) + work.weight * longest
        case Classify():
            return sum(_tokens(len(text)) for text in work.texts)
        case _:
            return sum(_prompt(item.prompt) + _tokens(len(item.answer)) for item in work.items)


def _prompt(prompt: Prompt) -> int:
    match prompt:
        case TextPrompt(text):
            return _tokens(len(text))
        case ChatPrompt(messages):
            return _tokens(sum(len(text) for _, text in messages))
        case InstructPrompt(instruction, extra):
            return _tokens(len(instruction) + len(extra))
        case TokenPrompt(ids):
            return len(ids)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS)
