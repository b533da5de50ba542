"""Padding by length, shifted targets, one end of sequence a row."""

import torch

from training.batches import AnswerExample, ClassExample, by_length, collate_answers, collate_texts, pad_left

EOS = 50256


def test_golden_vectors_of_recipe_1() -> None:
    rows = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    examples = [AnswerExample(number, (*ids, EOS), 0, 1) for number, ids in enumerate(rows, start=1)]
    batch = collate_answers(examples, pad_id=EOS)
    assert batch["input_ids"].tolist() == [
        [0, 1, 2, 3, 4],
        [5, 6, EOS, EOS, EOS],
        [7, 8, 9, EOS, EOS],
    ]
    assert batch["targets"].tolist() == [
        [1, 2, 3, 4, EOS],
        [6, EOS, -100, -100, -100],
        [8, 9, EOS, -100, -100],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [5, 2, 3]
    assert batch["numbers"].tolist() == [1, 2, 3]


def test_only_the_completion_is_learned() -> None:
    batch = collate_answers([AnswerExample(1, (3, 4, 5, 6, EOS), 3, 3), AnswerExample(2, (3, 7, EOS), 1, 1)], EOS)
    assert batch["targets"].tolist() == [[-100, -100, 6, EOS], [7, EOS, -100, -100]]


def test_one_token_of_a_prompt_is_enough() -> None:
    assert collate_answers([AnswerExample(1, (3, EOS), 0, 0)], EOS)["targets"].tolist() == [[EOS]]


def test_texts_are_padded_to_the_longest() -> None:
    batch = collate_texts([ClassExample(1, (4, 5, 6), 1), ClassExample(2, (0,), 0)], pad_id=0)
    assert batch["input_ids"].tolist() == [[4, 5, 6], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["targets"].tolist() == [1, 0]


def test_prompts_end_together() -> None:
    batch = pad_left([[4, 5, 6], [7]], 0)
    assert torch.equal(batch["input_ids"], torch.tensor([[4, 5, 6], [0, 0, 7]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [0, 0, 1]]))


def test_rows_of_like_length_share_a_batch() -> None:
    rows = [[1] * length for length in (5, 1, 4, 2, 3)]
    assert list(by_length(rows, 2)) == [[1, 3], [4, 2], [0]]
    assert list(by_length([], 2)) == []
