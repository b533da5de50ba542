"""Conversations as rows write them, OpenAI's messages and ShareGPT's, as one list of turns in a sensible order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.templates import Message, PromptInput
from training.data.fields import Note, read_text, refuse_keys
from training.data.tables import a_kind

_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES: Mapping[str, str] = {"system": "system", "human": "user", "gpt": "assistant"}
_TOOLS = ("tool_calls", "tool_call_id", "function_call", "tools")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; ``weight`` is what an answer's loss counts."""

    role: str
    content: str
    weight: float = 1.0


def prompt_of(turns: Sequence[Turn]) -> PromptInput:
    """The conversation so far as what a template renders."""
    return PromptInput.from_messages(Message(turn.role, turn.content) for turn in turns)


def read_messages(value: Any, column: str, note: Note) -> list[Turn] | None:
    """OpenAI's ``[{role, content, weight?}]``, or None with notes of every message that cannot be used."""
    if not _is_list(value, column, note):
        return None
    turns = [_message(item, f"{column!r} {number}: ", note) for number, item in enumerate(value, start=1)]
    good = [turn for turn in turns if turn is not None]
    return good if len(good) == len(turns) else None


def read_sharegpt(value: Any, column: str, note: Note) -> list[Turn] | None:
    """ShareGPT's ``[{from: human | gpt | system, value}]``, or None with notes."""
    if not _is_list(value, column, note):
        return None
    turns = [_sharegpt_message(item, f"{column!r} {number}: ", note) for number, item in enumerate(value, start=1)]
    good = [turn for turn in turns if turn is not None]
    return good if len(good) == len(turns) else None


def in_order(turns: Sequence[Turn], column: str, note: Note, *, ends_with: str) -> bool:
    """Whether a system message stands first if at all, user and assistant take turns, and the last is as it must be."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    skipped = len(turns) - len(spoken)
    for index, turn in enumerate(spoken):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            number = index + skipped + 1
            what = f"{column!r} {number}: {turn.role} where {expected} should speak"
            note(what, "let user and assistant take turns, a system message only before them")
            return False
    if not spoken or spoken[-1].role != ends_with:
        last = spoken[-1].role if spoken else "system"
        note(f"{column!r} ends with {last}, not with {ends_with}", f"end it with what the {ends_with} says")
        return False
    return True


def _is_list(value: Any, column: str, note: Note) -> bool:
    if not isinstance(value, list):
        note(f"{column!r} is {a_kind(value)}, not a list", "write a list of messages")
        return False
    if not value:
        note(f"{column!r} is empty", "write at least a question and its answer, or remove the row")
        return False
    return True


def _message(item: Any, where: str, note: Note) -> Turn | None:
    if not _is_message(item, ("role", "content"), where, note):
        return None
    role = item["role"]
    if role not in _ROLES:
        note(f"{where}the role {role!r} is not learned from", f"use {', '.join(_ROLES)}")
        return None
    tools = [key for key in _TOOLS if item.get(key) is not None]
    if tools:
        note(f"{where}{tools[0]!r}: calls of tools are not learned from", "remove the row, or say it in words")
        return None
    known = refuse_keys(item, ("role", "content", "weight"), note, where)
    content = _content(item, where, note)
    weight = _weight(item, role, where, note)
    return Turn(role, content, weight) if known and content is not None and weight is not None else None


def _sharegpt_message(item: Any, where: str, note: Note) -> Turn | None:
    if not _is_message(item, ("from", "value"), where, note):
        return None
    role = _SHAREGPT_ROLES.get(item["from"]) if isinstance(item["from"], str) else None
    if role is None:
        note(f"{where}the speaker {item['from']!r} is not learned from", f"use {', '.join(_SHAREGPT_ROLES)}")
        return None
    known = refuse_keys(item, ("from", "value"), note, where)
    content = read_text(item, "value", note, where=where)
    return Turn(role, content) if known and content is not None else None


def _is_message(item: Any, keys: tuple[str, str], where: str, note: Note) -> bool:
    if not isinstance(item, dict):
        note(f"{where}{a_kind(item)}, not an object", f"write an object with {keys[0]!r} and {keys[1]!r}")
        return False
    missing = [key for key in keys if key not in item]
    for key in missing:
        note(f"{where}no {key!r}", "add it")
    return not missing


def _content(item: Mapping[str, Any], where: str, note: Note) -> str | None:
    """The text of a message; a list of parts is joined if all of them are text."""
    value = item["content"]
    if not isinstance(value, list):
        return read_text(item, "content", note, where=where)
    kinds = [part.get("type") if isinstance(part, dict) else a_kind(part) for part in value]
    others = sorted({str(kind) for kind in kinds if kind != "text"})
    if others:
        note(f"{where}'content' holds {', '.join(others)}: only text is learned from", "remove the row")
        return None
    texts = [read_text({"text": part.get("text")}, "text", note, where=where) for part in value]
    if not texts:
        note(f"{where}'content' is empty", "write it out or remove the row")
    return "".join(text for text in texts if text is not None) if texts and None not in texts else None


def _weight(item: Mapping[str, Any], role: str, where: str, note: Note) -> float | None:
    weight = item.get("weight")
    if weight is None:
        return 1.0
    if role != "assistant":
        note(f"{where}'weight' on a {role} message", "remove it: only what the assistant says is learned")
    elif isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        note(f"{where}'weight' is {weight!r}", "write 0 for an answer that is not learned, else a number above 0")
    else:
        return float(weight)
    return None
