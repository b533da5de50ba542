"""What the card's table is made of."""

import math
from types import SimpleNamespace

import pytest
import torch

from adapters.base import resolve_base
from examples.generator.instructions import build_instructions
from models.measure import FRAMES, bits_per_byte, in_frames, table


def test_a_model_that_knows_nothing_needs_the_size_of_the_vocabulary() -> None:
    tokenizer = resolve_base("embedded").tokenizer()
    texts = ["A plain text. " * 100, "Another one."]

    def guess(ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*ids.shape, len(tokenizer)))

    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert bits_per_byte(guess, tokenizer, texts) == pytest.approx(tokens * math.log2(len(tokenizer)) / size, rel=1e-5)


def test_frames_are_new_and_stand_on_both_sides() -> None:
    parts = build_instructions()
    framed = in_frames(parts.heldout)
    assert len(framed) >= 60
    starts = [frame.split("{}")[0] or frame.split("{}")[1] for frame in FRAMES]
    for start in starts:
        assert any(start in row.input for row in framed)
        assert not any(start in f"{row.instruction} {row.input}" for row in parts.train)
    given = {row.input: row.output for row in framed}
    assert given["As you know, Rosa has begun the project."] == "As you know, the project has been begun by Rosa."
    assert given["In the end, Rosa has begun the project."] == "In the end, the project has been begun by Rosa."
    assert given["I think that the snow destroyed the harbor."] == "I think that the harbor was destroyed by the snow."


def test_the_table_has_a_column_for_each_base() -> None:
    def figures(value: float) -> dict[str, object]:
        return {
            "bits_per_byte": {"tales": value},
            "sentiment": {"reviews": (value / 2, {"majority": 0.5})},
            "instructions": {"plural": (3, 8), "past": (1, 4)},
            "losses": {"before": 2 * value, "after": value},
        }

    assert table({"old": figures(1.5), "new": figures(1.25)}).splitlines() == [
        "| | old | new |",
        "|---|---:|---:|",
        "| bits per byte, tales | 1.500 | 1.250 |",
        "| accuracy with LoRA, reviews (majority 0.500) | 0.750 | 0.625 |",
        "| loss of the expected answers, before LoRA | 3.000 | 2.500 |",
        "| loss of the expected answers, with LoRA | 1.500 | 1.250 |",
        "| exactly right with LoRA, plural | 3 of 8 | 3 of 8 |",
        "| exactly right with LoRA, past | 1 of 4 | 1 of 4 |",
        "| exactly right with LoRA, all of these | 4 of 12 | 4 of 12 |",
    ]
