"""Rows of a prompt with a better and a worse answer, as TRL and as OpenAI write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.templates import PromptInput
from training.data.fields import Note, read_text, refuse_keys
from training.data.instruct import turns_of
from training.data.messages import Turn, in_order, prompt_of, read_messages
from training.data.rows import Place, PreferenceRow
from training.data.tables import a_kind

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer with the conversation that stands before it in its column; empty where the column has the answer."""

    before: list[Turn]
    text: str


def read_preference(values: Values, place: Place, note: Note) -> PreferenceRow | None:
    """The row, or None with notes. ``values`` has the columns of one of the formats."""
    prompt: str | list[Turn] | None
    if "input" in values:
        better = "preferred_output" if "preferred_output" in values else "preferred_completion"
        worse = f"non_{better}"
        prompt = _openai_prompt(values["input"], note)
    else:
        better, worse = "chosen", "rejected"
        prompt = _prompt(values, note) if "prompt" in values else []
    chosen, rejected = _answer(values, better, note), _answer(values, worse, note)
    if prompt is None or chosen is None or rejected is None:
        return None
    asked = _agree(prompt, chosen, rejected, (better, worse), note)
    return None if asked is None else PreferenceRow(place, asked, chosen.text, rejected.text)


def _openai_prompt(value: Any, note: Note) -> list[Turn] | None:
    if not isinstance(value, dict) or "messages" not in value:
        what = "no 'messages' in 'input'" if isinstance(value, dict) else f"'input' is {a_kind(value)}, not an object"
        note(what, 'write {"messages": [...]}')
        return None
    turns = read_messages(value["messages"], "messages", note)
    if not refuse_keys(value, ("messages",), note, "'input': ") or turns is None:
        return None
    return turns if in_order(turns, "messages", note, ends_with="user") else None


def _prompt(values: Values, note: Note) -> str | list[Turn] | None:
    if isinstance(values["prompt"], str):
        return read_text(values, "prompt", note)
    turns = read_messages(values["prompt"], "prompt", note)
    return turns if turns is not None and in_order(turns, "prompt", note, ends_with="user") else None


def _answer(values: Values, column: str, note: Note) -> _Answer | None:
    turns = turns_of(values, column, "assistant", note)
    if turns is None:
        return None
    *before, last = turns
    if last.role != "assistant":
        note(f"{column!r} ends with {last.role}, not with assistant", "end it with what the assistant says")
        return None
    if before and not in_order(before, column, note, ends_with="user"):
        return None
    return _Answer(before, last.content)


def _agree(
    prompt: str | list[Turn], chosen: _Answer, rejected: _Answer, names: tuple[str, str], note: Note
) -> PromptInput | None:
    """The one prompt: given by itself, by both answers, or both ways alike."""
    if _said(chosen.before) != _said(rejected.before):
        what = f"{names[0]!r} and {names[1]!r} differ before the answer"
        note(what, "give both the same messages, and only the last one of its own")
        return None
    before = chosen.before
    if not prompt and not before:
        note(f"no prompt: {names[0]!r} holds only the answer", "add the column 'prompt'")
        return None
    if not prompt or not before:
        return PromptInput.from_instruction(prompt) if isinstance(prompt, str) else prompt_of(prompt or before)
    same = before[-1].content == prompt if isinstance(prompt, str) else _said(before) == _said(prompt)
    if not same:
        note(f"'prompt' and what stands before the answer in {names[0]!r} differ", "leave the column 'prompt' out")
        return None
    return prompt_of(before)


def _said(turns: list[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]
