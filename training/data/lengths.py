"""How long rows are in the tokens of a base, rendered by the one renderer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.errors import TemplateError
from adapters.templates import PromptTemplate, completion_ids, encode_text
from training.data.findings import Row, RowLength
from training.data.rows import DocumentRow, Exchange, InstructRow, Place, PreferenceRow, TextRow
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


def measure(rows: Sequence[Row], tokenizer: Any, template: PromptTemplate) -> tuple[list[RowLength], list[Problem]]:
    """The length of every row as it would be trained, and the rows that the template or the tokenizer refuses.

    A conversation is as long as its longest exchange; what is learned is counted over all of them.
    """
    lengths, problems = [], []
    for row in rows:
        try:
            lengths.append(_length(row, tokenizer, template))
        except TemplateError as error:
            problems.append(_problem(row.place, str(error), "pass --template chat, or a Jinja file that can"))
        except _EndTokenError:
            what = f"an answer holds {tokenizer.eos_token}, which is how the base ends an answer"
            problems.append(_problem(row.place, what, "take it out of the text"))
    return lengths, problems


class _EndTokenError(Exception):
    """An answer holds the token that ends answers."""


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
    longest = learned = 0
    for exchange in exchanges:
        answer = completion_ids(tokenizer, exchange.answer)
        if tokenizer.eos_token_id in answer:
            raise _EndTokenError
        answer_tokens = len(answer) + 1
        longest = max(longest, len(template.encode(tokenizer, exchange.prompt)) + answer_tokens)
        learned += answer_tokens if exchange.weight else 0
    return RowLength(longest, learned)


def _problem(place: Place, what: str, mend: str) -> Problem:
    return Problem(place.file, place.where, place.number, what, mend)
