"""What clients send: parsed at the edge, unknown fields refused by name, ranges checked.

The fields of OpenAI's interface that this service does not have are listed in `UNSUPPORTED`. They pass while they
hold the value that means "off", which some clients send, and are refused by name otherwise; none is dropped silently.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.errors import UNION_TAGS, UnsupportedParameterError


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is no character") from None
    return text


MAX_STOPS, MAX_CHOICES, MAX_ALTERNATIVES = 16, 128, 20
MAX_MESSAGES, MAX_PARTS, MAX_TEXTS, MAX_TOKEN_IDS = 4096, 1024, 1 << 16, 1 << 20
MAX_UNKNOWN = 5
"""Unknown fields of one object that are looked at; a body may hold hundreds of thousands."""
URGENCY = "Its place among the requests of its own tenant, lower first; other tenants never notice."
WHO = "Who asks; gets the same version every time where an adapter's requests are split between versions by user."
GREEDY_BELOW = 1e-3
"""A temperature below this is 0: the likeliest token would be chosen anyway."""

# Lengths are checked before the characters, so that a message speaks of characters.
Text = Annotated[str, AfterValidator(_is_unicode)]
FilledText = Annotated[str, Field(min_length=1), AfterValidator(_is_unicode)]
Name = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_is_unicode)]
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]
StopText = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_is_unicode)]
User = Annotated[str, Field(max_length=256), AfterValidator(_is_unicode)]
# A list ends at its first wrong item: to describe each of a million would take seconds and gigabytes.
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
TokenIds = Annotated[list[int], Field(fail_fast=True, min_length=1, max_length=MAX_TOKEN_IDS)]
TokenIdLists = Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
Stops = Annotated[list[StopText], Field(fail_fast=True, max_length=MAX_STOPS)]

TEXT, LIST, IDS, ID_LISTS, OBJECT = UNION_TAGS


def text_or_list(value: Any) -> str | None:
    """Which member of a union a value is meant for, so that it is checked against that one alone."""
    return TEXT if isinstance(value, str) else LIST if isinstance(value, list) else None


def _object_or_list(value: Any) -> str | None:
    return OBJECT if isinstance(value, dict) else LIST if isinstance(value, list) else None


def _prompt_kind(value: Any) -> str | None:
    if not isinstance(value, list):
        return text_or_list(value)
    first = value[0] if value else 0
    return ID_LISTS if isinstance(first, list) else LIST if isinstance(first, str) else IDS


def told_apart(kind_of: Callable[[Any], str | None], wanted: str) -> Discriminator:
    """Choose a union's member by ``kind_of``; what is none of them is told that it should be ``wanted``."""
    return Discriminator(kind_of, custom_error_type="wrong_kind", custom_error_message=f"Input should be {wanted}")


# Of each field the values that ask for nothing; None always does.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_MESSAGE_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


class WireModel(BaseModel):
    """Base of all bodies: strict types, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for field, harmless in cls.unsupported.items():
            # `==` alone would let 0 pass for False
            value = data.get(field)
            if value is not None and not any(type(value) is type(off) and value == off for off in harmless):
                raise UnsupportedFieldError(field)
        return cls._bounded({key: value for key, value in data.items() if key not in cls.unsupported})

    @classmethod
    def _bounded(cls, data: dict[Any, Any]) -> dict[Any, Any]:
        unknown = [key for key in data if key not in cls.model_fields]
        for key in unknown[MAX_UNKNOWN:]:
            del data[key]
        return data


class UnsupportedFieldError(UnsupportedParameterError, ValueError):
    """A parameter of OpenAI that is not served; pydantic carries it to the error handler."""

    def __init__(self, field: str) -> None:
        super().__init__(f"'{field}' is not supported by this server.", param=field)


class StreamOptions(WireModel):
    """How to stream."""

    include_usage: bool = Field(False, description="End the stream with a chunk that holds the usage.")


class Sampling(WireModel):
    """Fields that every request to write has."""

    unsupported = UNSUPPORTED

    model: Name = Field(description="Adapter (tenant/name, with @digest or :alias) or the base's id.")
    max_tokens: int | None = Field(None, ge=1, le=1 << 31, description="Longest answer in tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, and all below 0.001, take the likeliest token.")
    top_p: float | None = Field(None, ge=1e-6, le=1, description="Keep the likeliest tokens up to this probability.")
    top_k: int | None = Field(
        None, ge=-1, le=1 << 31, description="Keep this many likeliest tokens; 0 and -1 keep all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="Over 1 makes repetitions less likely.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Lowers tokens that stand in the answer.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers tokens by how often they stand there."
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers per prompt.")
    stop: (
        Annotated[
            Annotated[StopText, Tag(TEXT)] | Annotated[Stops, Tag(LIST)],
            told_apart(text_or_list, "a text or a list of texts"),
        ]
        | None
    ) = Field(None, description="Text, or texts, that end the answer and are no part of it.")
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="Same seed, same answer.")
    ignore_eos: bool | None = Field(None, description="Write on past the end-of-text token.")
    stream: bool | None = Field(None, description="Send the answer as it is written, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="How to stream.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds until the request is given up; the server's own if longer."
    )
    user: User | None = Field(None, description=WHO)
    priority: Priority = Field(0, description=URGENCY)
    metadata: dict[str, Any] | None = Field(None, description="Accepted for OpenAI's clients; it changes nothing.")
    prompt_cache_key: Text | None = Field(None, description="Accepted for OpenAI's clients; it changes nothing.")
    safety_identifier: Text | None = Field(None, description="Accepted for OpenAI's clients; it changes nothing.")

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(WireModel):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: Text


class ChatMessage(WireModel):
    """One turn of a conversation."""

    unsupported = _MESSAGE_UNSUPPORTED

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)]
        | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag(LIST)],
        told_apart(text_or_list, "a text or a list of text parts"),
    ]

    @property
    def turn(self) -> tuple[str, str]:
        """(role, text); a developer message is a system message."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ("system" if self.role == "developer" else self.role), text


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(
        min_length=1, max_length=MAX_MESSAGES, fail_fast=True, description="The conversation so far."
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 31, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Report log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Report so many alternatives too.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        lengths = (self.max_tokens, self.max_completion_tokens)
        if None not in lengths and lengths[0] != lengths[1]:
            raise ValueError("max_tokens and max_completion_tokens disagree: send one of them")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[Text, Tag(TEXT)]
        | Annotated[Texts, Tag(LIST)]
        | Annotated[TokenIds, Tag(IDS)]
        | Annotated[TokenIdLists, Tag(ID_LISTS)],
        told_apart(_prompt_kind, "a text, a list of token ids, or a list of either"),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Report so many alternatives per token.")


class InstructRequest(Sampling):
    """POST /v1/instruct: an instruction in Alpaca's form, rendered by the adapter's own template."""

    instruction: FilledText = Field(description="What to do.")
    input: Text = Field("", description="What to do it with.")
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Report so many alternatives per token.")


class ClassifyRequest(WireModel):
    """POST /v1/classify and /classify."""

    model: Name = Field(description="Adapter that classifies (tenant/name, with @digest or :alias).")
    input: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[Texts, Tag(LIST)],
        told_apart(text_or_list, "a text or a list of texts"),
    ] = Field(description="Text or texts to classify.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="For an adapter with several labels at once: from where on a label holds; 0.5."
    )
    timeout: float | None = Field(
        None, gt=0, description="Seconds until the request is given up; the server's own if longer."
    )
    user: User | None = Field(None, description=WHO)
    priority: Priority = Field(0, description=URGENCY)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts as a tuple."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


class ScoreItem(WireModel):
    """An answer to be scored, with what it answers: a prompt, a conversation, or an instruction with its input."""

    prompt: FilledText | None = Field(None, description="What is answered; the adapter's own template renders it.")
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        None, description="The conversation that is answered."
    )
    instruction: FilledText | None = Field(None, description="What was to be done.")
    input: Text | None = Field(None, description="What it was to be done with; only beside instruction.")
    answer: Text = Field(description="The answer to be scored.")

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if sum(given is not None for given in (self.prompt, self.messages, self.instruction)) != 1:
            raise ValueError("send one of prompt, messages and instruction")
        if self.input is not None and self.instruction is None:
            raise ValueError("input is only for an instruction")
        return self


class ScoreRequest(WireModel):
    """POST /v1/score."""

    model: Name = Field(description="Adapter that scores (tenant/name, with @digest or :alias).")
    items: Annotated[
        Annotated[ScoreItem, Tag(OBJECT)]
        | Annotated[list[ScoreItem], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS), Tag(LIST)],
        told_apart(_object_or_list, "an item or a list of items"),
    ] = Field(description="Answer or answers to be scored, each with its prompt.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds until the request is given up; the server's own if longer."
    )
    user: User | None = Field(None, description=WHO)
    priority: Priority = Field(0, description=URGENCY)


class LoadAdapterRequest(WireModel):
    """POST /v1/load_lora_adapter, as vLLM has it."""

    lora_name: Name = Field(description="Name to serve it under: tenant/name.")
    lora_path: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_is_unicode)] = Field(
        description="A reference into the store, or a folder inside TENORA_ADAPTER_FOLDERS."
    )
    load_inplace: bool = Field(False, description="Replace what is served under the name.")


class UnloadAdapterRequest(WireModel):
    """POST /v1/unload_lora_adapter, as vLLM has it."""

    lora_name: Name = Field(description="Name to stop serving.")
    lora_int_id: int | None = Field(None, description="Accepted for vLLM's clients; names are all that counts.")
