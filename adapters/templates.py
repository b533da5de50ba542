"""The one renderer: training, evaluation and serving turn an input into token ids here and nowhere else.

    alpaca   Below is an instruction … ### Instruction: … ### Input: … ### Response:
    chat     the tokenizer's own chat template
    plain    the instruction itself (with its input below it)
    jinja    a user's own text, run in `adapters.sandbox`

Answers are not rendered: training appends `completion_ids` and one EOS to a prompt's ids, and `scored_ids` does the
same for an answer that is to be scored.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from adapters.errors import TemplateError
from adapters.manifest import EosSpec, Golden, PromptSpec
from adapters.sandbox import compile_text, render_text

TemplateKind = Literal["alpaca", "chat", "plain", "jinja"]
Role = Literal["system", "user", "assistant"]

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}"
    "\n\n### Input:\n{input}"
    "\n\n### Response:\n"
)
_ALPACA_INPUT = "\n\n### Input:\n{input}"
_TEXTS: Mapping[str, str] = {"alpaca": ALPACA, "chat": "", "plain": ""}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise TemplateError(f"{self.role!r} is not a role: use {', '.join(get_args(Role))}", key="role")


@dataclass(frozen=True, slots=True)
class PromptInput:
    """What a prompt is made from: a conversation, or an instruction with an optional input."""

    messages: tuple[Message, ...] | None
    instruction: str | None
    input: str = ""

    @classmethod
    def from_messages(cls, messages: Iterable[Message | Mapping[str, str]]) -> "PromptInput":
        """A conversation; mappings need `role` and `content`."""
        turns = tuple(turn if isinstance(turn, Message) else _message(turn) for turn in messages)
        if not turns:
            raise TemplateError("there are no messages: send at least one", key="messages")
        return cls(turns, None)

    @classmethod
    def from_instruction(cls, instruction: str, input: str = "") -> "PromptInput":  # noqa: A002 (Alpaca's own word)
        """An Alpaca row without its output."""
        return cls(None, instruction, input)

    def as_messages(self) -> tuple[Message, ...]:
        """The conversation; an instruction becomes one user message, its input below it."""
        return self.messages if self.messages is not None else (Message("user", self._joined()),)

    def as_instruction(self) -> tuple[str, str]:
        """(instruction, input); of a conversation only [user] and [system, user] can be read so."""
        if self.messages is None:
            return self.instruction or "", self.input
        match [(turn.role, turn.content) for turn in self.messages]:
            case [("user", content)]:
                return content, ""
            case [("system", system), ("user", content)]:
                return system, content
        roles = ", ".join(turn.role for turn in self.messages)
        message = (
            f"the alpaca template takes [user] or [system, user], not [{roles}]: use an adapter with a chat template"
        )
        raise TemplateError(message, key="messages")

    def as_text(self) -> str:
        """The instruction with its input, or the content of a single user message."""
        if self.messages is None:
            return self._joined()
        if len(self.messages) == 1 and self.messages[0].role == "user":
            return self.messages[0].content
        message = "the plain template takes a single user message: use an adapter with a chat template"
        raise TemplateError(message, key="messages")

    def _joined(self) -> str:
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction or ""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Turns a PromptInput into text and token ids. ``text`` is what travels with the adapter."""

    kind: TemplateKind
    text: str

    @classmethod
    def named(cls, kind: str) -> "PromptTemplate":
        """One of the templates that have a name: alpaca, chat, plain."""
        if kind not in _TEXTS:
            raise TemplateError(f"{kind!r} is not a template: use {', '.join(_TEXTS)} or a Jinja text", key="template")
        return cls(cast(TemplateKind, kind), _TEXTS[kind])

    @classmethod
    def from_text(cls, text: str) -> "PromptTemplate":
        """A user's Jinja text.

        It sees messages, instruction, input, system, bos_token, eos_token and add_generation_prompt;
        ``instruction`` and ``input`` are undefined for a conversation that does not end in its one user message.
        """
        compile_text(text)
        return cls("jinja", text)

    @classmethod
    def from_manifest(cls, prompt: PromptSpec) -> "PromptTemplate":
        """The template that an adapter was trained with."""
        if hashlib.sha256(prompt.text.encode()).hexdigest() != prompt.sha256:
            raise TemplateError(
                "the prompt template's text does not have the sha256 that the manifest states", key="prompt.sha256"
            )
        if prompt.template == "jinja":
            return cls.from_text(prompt.text)
        template = cls.named(prompt.template)
        if prompt.template != "chat" and prompt.text != template.text:
            message = (
                f"the manifest's {prompt.template} template has another text than this version's: store it as jinja"
            )
            raise TemplateError(message, key="prompt.text")
        return template

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def to_manifest(self, tokenizer: Any, golden: PromptInput | None = None) -> PromptSpec:
        """Describe the template, with the ids that a golden instruction has today."""
        example = golden or PromptInput.from_instruction("Rewrite the sentence, “naïve” or not.", "It was good.")
        instruction, given = example.as_instruction()
        ids = self.encode(tokenizer, PromptInput.from_instruction(instruction, given))
        # The chat template's text is the tokenizer's; it is kept so that another one is noticed.
        text = chat_text(tokenizer) if self.kind == "chat" else self.text
        return PromptSpec(
            template=self.kind,
            text=text,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            golden=Golden(instruction=instruction, input=given, ids=tuple(ids)),
        )

    def render(self, tokenizer: Any, prompt: PromptInput) -> str:
        """The prompt's text, ending where the answer begins."""
        if self.kind == "alpaca":
            return _render_alpaca(*prompt.as_instruction())
        if self.kind == "plain":
            return prompt.as_text()
        return _render_chat(tokenizer, prompt) if self.kind == "chat" else _render_jinja(self.text, tokenizer, prompt)

    def encode(self, tokenizer: Any, prompt: PromptInput) -> list[int]:
        """The prompt's token ids: with the tokenizer's own BOS where it has that habit, never with a closing token.

        A chat template writes its special tokens itself, so nothing is added to it.
        """
        ids = _ids(tokenizer, self.render(tokenizer, prompt))
        bos = None if self.kind == "chat" else _habitual_bos(tokenizer)
        # A Jinja text may write the BOS itself.
        return ids if bos is None or (self.kind == "jinja" and ids[:1] == [bos]) else [bos, *ids]


def chat_text(tokenizer: Any) -> str:
    """The text of a tokenizer's chat template; empty without one."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else ""


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of an answer, without special tokens; training appends the one EOS itself."""
    return _ids(tokenizer, text)


def scored_ids(template: PromptTemplate, tokenizer: Any, prompt: PromptInput, answer: str) -> list[int]:
    """Token ids of an answer to be scored: the prompt's, the answer's, and one end token.

    A decoder's head reads the last of them. An encoder's reads the first, so its opening token ([CLS]) is put there.
    """
    ids = template.encode(tokenizer, prompt)
    opening, _ = _special_tokens(tokenizer)
    if opening and opening == [tokenizer.cls_token_id] and ids[:1] != opening:
        ids = [*opening, *ids]
    return [*ids, *completion_ids(tokenizer, answer), scored_end(tokenizer).id]


def scored_end(tokenizer: Any) -> EosSpec:
    """The token that ends what is scored: the end of text, or the separator of an encoder that has no other."""
    if tokenizer.eos_token is not None:
        return EosSpec(text=tokenizer.eos_token, id=tokenizer.eos_token_id)
    if tokenizer.sep_token is not None:
        return EosSpec(text=tokenizer.sep_token, id=tokenizer.sep_token_id)
    raise TemplateError("the tokenizer has no end token, which a scored answer needs: set its eos_token", key="eos")


def encode_text(tokenizer: Any, text: str, max_length: int, truncation_side: str) -> list[int]:
    """Token ids of a text to classify: special tokens on, cut to ``max_length`` at the given side.

    The cut is made here and not by the tokenizer, whose truncation setting is shared between threads.
    """
    before, after = _special_tokens(tokenizer)
    ids = _ids(tokenizer, text)
    room = max_length - len(before) - len(after)
    if room < 1:
        raise TemplateError(f"max_length {max_length} leaves no room beside the special tokens", key="max_length")
    if len(ids) > room:
        ids = ids[-room:] if truncation_side == "left" else ids[:room]
    return [*before, *ids, *after]


def _message(turn: Mapping[str, str]) -> Message:
    try:
        return Message(turn["role"], turn["content"])
    except KeyError as error:
        raise TemplateError(f"a message has no {error.args[0]!r}", key="messages") from error


def _render_alpaca(instruction: str, given: str) -> str:
    # Built by hand: a brace in an instruction must not be read as a placeholder.
    head, _, tail = ALPACA.partition(_ALPACA_INPUT)
    before, _, _ = _ALPACA_INPUT.partition("{input}")
    return head.removesuffix("{instruction}") + instruction + (before + given if given else "") + tail


def _render_chat(tokenizer: Any, prompt: PromptInput) -> str:
    import jinja2

    if not tokenizer.chat_template:
        message = "the base's tokenizer has no chat template: use alpaca, plain or a Jinja text"
        raise TemplateError(message, key="template")
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.as_messages()]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template refuses these messages: {error!s:.300}", key="messages") from error


def _render_jinja(text: str, tokenizer: Any, prompt: PromptInput) -> str:
    turns = prompt.as_messages()
    variables: dict[str, Any] = {
        "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
        "system": turns[0].content if turns[0].role == "system" else "",
        "bos_token": tokenizer.bos_token or "",
        "eos_token": tokenizer.eos_token or "",
        "add_generation_prompt": True,
    }
    if prompt.messages is None:
        variables |= {"instruction": prompt.instruction or "", "input": prompt.input}
    elif [turn.role for turn in turns if turn.role != "system"] == ["user"]:
        variables |= {"instruction": turns[-1].content, "input": ""}
    return render_text(text, variables)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    inner = _ids(tokenizer, "a")
    whole = list(tokenizer("a", verbose=False)["input_ids"])
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise TemplateError("the tokenizer changes a text when it adds special tokens", key="tokenizer")


def _habitual_bos(tokenizer: Any) -> int | None:
    before, _ = _special_tokens(tokenizer)
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and before == [bos] else None
