"""How long rows are in the tokens of a base, rendered by the one renderer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.templates import PromptTemplate, completion_ids, encode_text
from training.data.findings import Row, RowLength
from training.data.rows import DocumentRow, Exchange, InstructRow, PreferenceRow, TextRow
from training.data.unfit import UNFIT, answer_ids, problem_of
from training.errors import ConfigError, Problem

_NAMED = ("alpaca", "chat", "plain")
_NO_LIMIT = 1 << 30


def find_template(spec: str) -> PromptTemplate:
    """One of the named templates, or the text of a Jinja file.

    Raises:
        ConfigError: neither of them.
    """
    if spec in _NAMED:
        return PromptTemplate.named(spec)
    try:
        return PromptTemplate.from_text(Path(spec).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        named = ", ".join(_NAMED)
        raise ConfigError(f"--template {spec}: neither {named} nor a file that can be read ({error})") from None


@dataclass(slots=True)
class Measured:
    """The rows that the template and the tokenizer take, with their lengths, and what is wrong with the others."""

    rows: list[Row] = field(default_factory=list)
    lengths: list[RowLength] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def measure(rows: Sequence[Row], tokenizer: Any, template: PromptTemplate) -> Measured:
    """Every row as it would be trained.

    A conversation is as long as its longest exchange; what is learned is counted over all of them.
    """
    found = Measured()
    for row in rows:
        try:
            length = _length(row, tokenizer, template)
        except UNFIT as error:
            found.problems.append(problem_of(row.place, error))
        else:
            found.rows.append(row)
            found.lengths.append(length)
    return found


def _length(row: Row, tokenizer: Any, template: PromptTemplate) -> RowLength:
    match row:
        case TextRow():
            return RowLength(len(encode_text(tokenizer, row.text, _NO_LIMIT, "right")), 1)
        case DocumentRow():
            tokens = len(completion_ids(tokenizer, row.text)) + 1
            return RowLength(tokens, tokens - 1)
        case PreferenceRow():
            return _of_exchanges(
                [Exchange(row.prompt, row.chosen), Exchange(row.prompt, row.rejected)], tokenizer, template
            )
        case InstructRow():
            return _of_exchanges(row.exchanges, tokenizer, template)


def _of_exchanges(exchanges: Sequence[Exchange], tokenizer: Any, template: PromptTemplate) -> RowLength:
    """Of what is read for the last answer that is learned; what follows it is not."""
    longest = learned = to_learn = 0
    for exchange in exchanges:
        answer_tokens = len(answer_ids(tokenizer, exchange.answer)) + 1
        longest = max(longest, len(template.encode(tokenizer, exchange.prompt)) + answer_tokens)
        if exchange.weight:
            learned, to_learn = learned + answer_tokens, longest
    return RowLength(to_learn or longest, learned)
