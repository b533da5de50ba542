"""Rows that are written well and still cannot be learned: the template or the tokenizer refuses them."""

from typing import Any

from adapters.errors import TemplateError
from adapters.templates import completion_ids
from training.data.rows import Place
from training.errors import Problem


class EndTokenError(Exception):
    """An answer holds the token that ends answers."""

    def __init__(self, token: str) -> None:
        super().__init__(f"an answer holds {token}, which is how the base ends an answer")


UNFIT = (TemplateError, EndTokenError)
"""What makes a row unfit for a template and a tokenizer."""


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer, without the one end token that is put behind it.

    Raises:
        EndTokenError: it holds that token itself.
    """
    ids = completion_ids(tokenizer, answer)
    if tokenizer.eos_token_id in ids:
        raise EndTokenError(tokenizer.eos_token)
    return ids


def problem_of(place: Place, error: Exception) -> Problem:
    """What to tell of a row that raised one of ``UNFIT``."""
    in_text = isinstance(error, EndTokenError)
    mend = "take it out of the text" if in_text else "pass --template chat, or a Jinja file that can"
    return Problem(place.file, place.where, place.number, str(error), mend)
