"""Streaming text: whole characters only, and never a part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.detokenizer import Detokenizer
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation
from tests.support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ALPHABET = st.text(st.sampled_from("abc dé🙂好\n###x"), max_size=40)


def stream(text: str, stop: list[str]) -> tuple[list[str], bool]:
    """The pieces emitted for a text that ends where it ends or at a stop string."""
    detokenizer, pieces = Detokenizer(TOKENIZER, stop), []
    for token in TOKENIZER(text)["input_ids"]:
        piece = detokenizer.append(token)
        pieces.append(piece.text)
        if piece.stopped:
            return pieces, True
    return [*pieces, detokenizer.finish()], False


@given(ALPHABET)
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str) -> None:
    pieces, stopped = stream(text, [])
    assert "".join(pieces) == text
    assert not stopped
    assert not any("\ufffd" in piece for piece in pieces)


@given(ALPHABET, st.lists(st.text("abc dé🙂\n#", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    pieces, stopped = stream(text, stop)
    ends = [(end, end - len(s)) for end in range(len(text) + 1) for s in stop if text[:end].endswith(s)]
    assert stopped == bool(ends)
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)


@given(st.lists(st.integers(2, len(TOKENIZER) - 1), max_size=60))
def test_any_bytes_at_all_join_to_what_the_tokenizer_says(ids: list[int]) -> None:
    """Random tokens are mostly no characters; what is streamed is the full text, less an unfinished end."""
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(detokenizer.append(token).text for token in ids) + detokenizer.finish()
    assert text == TOKENIZER.decode(ids, clean_up_tokenization_spaces=False).rstrip("\ufffd")


def test_a_stop_string_across_token_borders_ends_the_answer(llama: Zoo) -> None:
    engine, ids = llama.engine(), llama.ids("the quick")
    full = drain(engine, generation("r", ids, max_tokens=24))["r"]
    pieces = [TOKENIZER.decode([token]) for token in full.tokens]
    stop = full.text[len(pieces[0]) + len(pieces[1]) - 1 :][:4]
    outcome = drain(engine, generation("r", ids, max_tokens=24, stop=(stop,)))["r"]
    assert outcome.finished is not None
    assert outcome.finished.reason == "stop"
    assert outcome.text == full.text[: full.text.find(stop)]
