"""Turns a growing list of tokens into text that can be streamed.

Two things hold text back: a character whose bytes are not all there yet, and the beginning of what may become a
stop string.
"""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are not a character (yet)
_PATIENCE = 16  # tokens; a character has at most 4 bytes and a token at least 1
_CHARACTER = 3  # the most tokens an unfinished character can have contributed


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is safe to emit; ``stopped`` when a stop string came behind it."""

    text: str
    stopped: bool = False


class Detokenizer:
    """The text of one sequence's answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Tokens[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Tokenizers drop leading spaces and join pieces by context: decode from a token whose text is already out.
        self._context = 0
        self._read = 0
        self._held = ""

    def append(self, token_id: int) -> Piece:
        """Add a token; return the text that can be emitted now."""
        self._ids.append(token_id)
        return self._emit(self._decode_new())

    def finish(self) -> str:
        """The text still held back, once no token follows; bytes of an unfinished character are dropped."""
        text, self._held = self._held + self._window(len(self._ids)).rstrip(_BROKEN), ""
        return text

    def _decode_new(self) -> str:
        text = self._window(len(self._ids))
        end = len(self._ids)
        if text.endswith(_BROKEN):
            if end - self._read <= _PATIENCE:
                return ""
            end -= _CHARACTER  # these bytes never were characters; only the last few may still become one
            text = self._window(end)
        if text:
            self._context, self._read = self._read, end
        return text

    def _window(self, end: int) -> str:
        """The text that the tokens from ``_read`` to ``end`` add."""
        before = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context : end])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _emit(self, new: str) -> Piece:
        if not self._stop:
            return Piece(new)
        text = self._held + new
        # The stop string that is complete first counts, however the tokens cut the text.
        hits = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if hits:
            self._held, self._read = "", len(self._ids)
            return Piece(text[: min(hits)[1]], stopped=True)
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep])


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
