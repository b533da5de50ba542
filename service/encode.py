"""Prompts and texts as token ids, checked against the context."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters.adapter import Adapter
from adapters.base import BaseSource
from adapters.manifest import Task
from adapters.store import Version
from adapters.templates import Message, PromptInput, PromptTemplate, encode_text, scored_ids
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from service.errors import ContextLengthError, InvalidRequestError, WrongTaskError
from service.messages import (
    ChatPrompt,
    Classify,
    Generate,
    InstructPrompt,
    Prompt,
    Score,
    ScoredAnswer,
    TextPrompt,
    TokenPrompt,
    Work,
)


@dataclass(frozen=True, slots=True)
class _Verb:
    """How a task is spoken of, and where it is asked for."""

    does: str
    do: str
    routes: str


_VERBS: Mapping[Task, _Verb] = {
    "generate": _Verb("writes", "write", "/v1/chat/completions, /v1/completions or /v1/instruct"),
    "classify": _Verb("classifies", "classify", "/v1/classify"),
    "score": _Verb("scores", "score", "/v1/score"),
}
_SEEDS = 1 << 63


def check_task(work: Work, version: Version | None, base: BaseSource) -> None:
    """Refuse a task that the model cannot do, naming the route that can."""
    wanted: Task = "generate" if isinstance(work, Generate) else "classify" if isinstance(work, Classify) else "score"
    if version is None and wanted != "generate":
        what = "labels" if wanted == "classify" else "scores"
        message = f"The base `{base.id}` has no {what}: name an adapter that {_VERBS[wanted].does}."
        raise WrongTaskError(message, param="model")
    if version is None and base.kind == "encoder":
        message = f"The base `{base.id}` is an encoder and does not write: call /v1/classify or /v1/score."
        raise WrongTaskError(message, param="model")
    if version is not None and version.manifest.task != wanted:
        own = _VERBS[version.manifest.task]
        message = f"The adapter `{version.name}` {own.does} and does not {_VERBS[wanted].do}: call {own.routes}."
        raise WrongTaskError(message, param="model")


class Encoder:
    """Makes sequences of requests.

    Args:
        base: Its tokenizer and chat template are used where the adapter brings none.
        limit: Longest prompt plus answer in tokens.
    """

    def __init__(self, base: BaseSource, limit: int) -> None:
        self._base = base
        self._limit = limit
        self._tokenizer: Any = base.tokenizer()
        self._longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._vocabulary = int(getattr(base.config(), "vocab_size", len(self._tokenizer)))
        self._plain = PromptTemplate.named("plain")
        self._chat = PromptTemplate.named("chat")

    def sequences(
        self, request_id: str, work: Work, version: Version | None, adapter: Adapter | None
    ) -> list[Sequence]:
        """Everything that the engine has to run for a request."""
        if isinstance(work, Classify):
            assert version is not None and adapter is not None, "classification needs an adapter"
            return self._texts(request_id, work, version, adapter)
        if isinstance(work, Score):
            assert version is not None and adapter is not None, "scores need an adapter"
            return self._answers(request_id, work, version, adapter)
        return self._prompts(request_id, work, version, adapter)

    def _texts(self, request_id: str, work: Classify, version: Version, adapter: Adapter) -> list[Sequence]:
        if work.threshold is not None and not version.manifest.multi_label:
            message = f"The adapter `{version.name}` gives each text one label: there is no threshold to set."
            raise InvalidRequestError(message, param="threshold")
        length = min(version.manifest.max_length, self._limit)
        side = version.manifest.truncation_side
        sequences = []
        for index, text in enumerate(work.texts):
            ids = encode_text(self._tokenizer, self._cut(text, length, side), length, side)
            if not ids:
                raise InvalidRequestError("A text to classify is empty.", param="input")
            sequences.append(Sequence(request_id, ids, index=index, adapter=adapter, **_terms(work)))
        return sequences

    def _cut(self, text: str, length: int, side: str) -> str:
        """What can matter of a text of which ``length`` tokens are kept; tokenising megabytes would take seconds."""
        most = length * self._longest_token
        return text[-most:] if side == "left" else text[:most]

    def _answers(self, request_id: str, work: Score, version: Version, adapter: Adapter) -> list[Sequence]:
        assert version.manifest.prompt is not None, "an adapter that scores has a template"
        template = PromptTemplate.from_manifest(version.manifest.prompt)
        most = min(version.manifest.max_length, self._limit)
        sequences = []
        for index, item in enumerate(work.items):
            ids = self._scored_ids(item, template)
            if len(ids) > most:  # nothing is cut: half an answer would get the score of another one
                raise ContextLengthError(
                    f"{item.field}: the prompt, its answer and the end token have {len(ids)} tokens; the adapter "
                    f"`{version.name}` scores at most {most}.",
                    param=item.field,
                )
            sequences.append(Sequence(request_id, ids, index=index, adapter=adapter, **_terms(work)))
        return sequences

    def _scored_ids(self, item: ScoredAnswer, template: PromptTemplate) -> list[int]:
        characters = _characters_of(item.prompt) + len(item.answer)
        self._check_characters(characters, "prompt and its answer have", item.field)
        return scored_ids(template, self._tokenizer, _input_of(item.prompt), item.answer)

    def _check_characters(self, characters: int, who: str, field: str) -> None:
        """Refuse, before it is rendered and tokenised, what cannot fit however long its tokens are."""
        most = self._limit * self._longest_token
        if characters > most:
            raise ContextLengthError(
                f"The {who} {characters} characters: the context holds {self._limit} tokens, which are "
                f"{most} characters at the very most.",
                param=field,
            )

    def _prompts(
        self, request_id: str, work: Generate, version: Version | None, adapter: Adapter | None
    ) -> list[Sequence]:
        sequences = []
        for place, prompt in enumerate(work.prompts):
            self._check_characters(_characters_of(prompt), "prompt has", _field_of(prompt))
            ids = self._prompt_ids(prompt, version)
            max_tokens = self._answer_length(len(ids), work)
            for choice in range(work.n):
                sampling = replace(work.sampling, max_tokens=max_tokens, seed=_seed_of(work.sampling, choice))
                sequence = Sequence(
                    request_id,
                    ids,
                    index=place * work.n + choice,
                    adapter=adapter,
                    sampling=sampling,
                    **_terms(work),
                )
                sequences.append(sequence)
        return sequences

    def _prompt_ids(self, prompt: Prompt, version: Version | None) -> list[int]:
        match prompt:
            case TokenPrompt(ids):
                return self._checked_ids(ids)
            case TextPrompt(text):
                return self._plain.encode(self._tokenizer, PromptInput.from_instruction(text))
            case ChatPrompt():
                return self._template(version, self._chat).encode(self._tokenizer, _input_of(prompt))
            case InstructPrompt():
                own = self._chat if getattr(self._tokenizer, "chat_template", None) else self._plain
                return self._template(version, own).encode(self._tokenizer, _input_of(prompt))

    def _template(self, version: Version | None, own: PromptTemplate) -> PromptTemplate:
        if version is None or version.manifest.prompt is None:
            return own
        return PromptTemplate.from_manifest(version.manifest.prompt)

    def _checked_ids(self, ids: tuple[int, ...]) -> list[int]:
        if any(not 0 <= token < self._vocabulary for token in ids):
            message = f"prompt: token ids of `{self._base.id}` are between 0 and {self._vocabulary - 1}."
            raise InvalidRequestError(message, param="prompt")
        return list(ids)

    def _answer_length(self, prompt_tokens: int, work: Generate) -> int:
        if prompt_tokens == 0:
            raise InvalidRequestError("The prompt is empty: it has no tokens.", param=_field_of(work.prompts[0]))
        left = self._limit - prompt_tokens
        if left < 1:
            raise ContextLengthError(
                f"The prompt has {prompt_tokens} tokens and leaves no room for an answer: "
                f"the context holds {self._limit} tokens.",
                param=_field_of(work.prompts[0]),
            )
        if work.max_tokens is None:
            return min(work.default_max_tokens, left)
        if work.max_tokens > left:
            raise ContextLengthError(
                f"The prompt has {prompt_tokens} tokens and max_tokens is {work.max_tokens}, together "
                f"{prompt_tokens + work.max_tokens}: the context holds {self._limit} tokens.",
                param="max_tokens",
            )
        return work.max_tokens


def _terms(work: Work) -> dict[str, Any]:
    """On what terms the engine works for a request: for whom, how urgently, until when."""
    return {
        "scope": work.tenant or "",
        "share": work.share,
        "priority": work.priority,
        "deadline": work.deadline,
    }


def _input_of(prompt: ChatPrompt | InstructPrompt) -> PromptInput:
    if isinstance(prompt, ChatPrompt):
        return PromptInput.from_messages(tuple(Message(role, text) for role, text in prompt.messages))
    return PromptInput.from_instruction(prompt.instruction, prompt.input)


def _characters_of(prompt: Prompt) -> int:
    match prompt:
        case TextPrompt(text):
            return len(text)
        case ChatPrompt(messages):
            return sum(len(text) for _, text in messages)
        case InstructPrompt(instruction, extra):
            return len(instruction) + len(extra)
        case TokenPrompt():
            return 0


def _field_of(prompt: Prompt) -> str:
    """The field of the request that a prompt came from."""
    if isinstance(prompt, ChatPrompt):
        return "messages"
    return "instruction" if isinstance(prompt, InstructPrompt) else "prompt"


def _seed_of(sampling: SamplingParams, choice: int) -> int | None:
    """Each choice of a seeded request has a seed of its own, or all would be the same text."""
    return None if sampling.seed is None else (sampling.seed + choice) % _SEEDS
