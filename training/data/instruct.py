"""Rows of prompts and answers: Alpaca's, conversations in two notations, prompt and completion."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.templates import PromptInput
from training.data.fields import Note, read_text
from training.data.messages import Turn, in_order, prompt_of, read_messages, read_sharegpt
from training.data.rows import Exchange

Values = Mapping[str, Any]


def read_exchanges(form: str, values: Values, note: Note) -> tuple[Exchange, ...] | None:
    """The exchanges of a row that has the columns of the format ``form``, or None with notes."""
    return _READERS[form](values, note)


def _alpaca(values: Values, note: Note) -> tuple[Exchange, ...] | None:
    instruction, output = read_text(values, "instruction", note), read_text(values, "output", note)
    given: str | None = ""
    if values.get("input") is not None:
        given = read_text(values, "input", note, may_be_empty=True)
    if instruction is None or output is None or given is None:
        return None
    return (Exchange(PromptInput.from_instruction(instruction, given), output),)


def _messages(values: Values, note: Note) -> tuple[Exchange, ...] | None:
    return _conversation(read_messages(values["messages"], "messages", note), "messages", note)


def _conversations(values: Values, note: Note) -> tuple[Exchange, ...] | None:
    return _conversation(read_sharegpt(values["conversations"], "conversations", note), "conversations", note)


def _prompt_and_completion(values: Values, note: Note) -> tuple[Exchange, ...] | None:
    """Strings are an instruction and its answer; of messages, only what stands in the completion is an answer."""
    if isinstance(values["prompt"], str) and isinstance(values["completion"], str):
        prompt, completion = read_text(values, "prompt", note), read_text(values, "completion", note)
        if prompt is None or completion is None:
            return None
        return (Exchange(PromptInput.from_instruction(prompt), completion),)
    asked = turns_of(values, "prompt", "user", note)
    answered = turns_of(values, "completion", "assistant", note)
    if asked is None or answered is None or not in_order(asked, "prompt", note, ends_with="user"):
        return None
    # The whole is checked under the completion's name: the prompt by itself is in order.
    return _conversation([*asked, *answered], "completion", note, first=len(asked))


def turns_of(values: Values, column: str, role: str, note: Note) -> list[Turn] | None:
    """A list of messages as it stands, a string as one message of ``role``; None with notes."""
    if isinstance(values[column], str):
        text = read_text(values, column, note)
        return None if text is None else [Turn(role, text)]
    return read_messages(values[column], column, note)


def _conversation(turns: Sequence[Turn] | None, column: str, note: Note, first: int = 0) -> tuple[Exchange, ...] | None:
    """An exchange for each answer from turn ``first`` on."""
    if turns is None or not in_order(turns, column, note, ends_with="assistant"):
        return None
    return tuple(
        Exchange(prompt_of(turns[:index]), turn.content, turn.weight)
        for index, turn in enumerate(turns)
        if turn.role == "assistant" and index >= first
    )


_READERS: Mapping[str, Callable[[Values, Note], tuple[Exchange, ...] | None]] = {
    "instruction": _alpaca,
    "messages": _messages,
    "prompt and completion": _prompt_and_completion,
    "conversations": _conversations,
}
