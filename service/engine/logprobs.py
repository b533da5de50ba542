"""Log-probabilities of chosen tokens, with alternatives, as the model gave them."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from service.engine.events import Alternative, TokenLogprob

_BROKEN = "\ufffd"


class Logprobs:
    """Reports log-probabilities in a tokenizer's own tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def of(self, logits: Tensor, token_id: int, alternatives: int) -> TokenLogprob:
        """The log-probability of ``token_id`` and of the likeliest ``alternatives`` tokens.

        Shapes:
            logits: ``[vocabulary]``, before penalties and temperature
        """
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        top = tuple(
            Alternative(i, *self._text(i), value) for i, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(token_id, *self._text(token_id), float(logprobs[token_id]), top)

    def _text(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        text: str = self._tokenizer.decode([token_id])
        return text, tuple(self._bytes(token_id, text))

    def _bytes(self, token_id: int, text: str) -> bytes:
        """The token's own bytes: of a byte-level token its text may hold only a part of a character."""
        if _BROKEN not in text:
            return text.encode()
        piece: str = self._tokenizer.convert_ids_to_tokens(token_id)
        return bytes(_BYTE_OF[character] for character in piece if character in _BYTE_OF)


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where printable, else from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_level_alphabet()
