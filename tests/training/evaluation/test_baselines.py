import pytest

from training.evaluation.baselines import majority_baseline, text_baseline

THINGS = ("bread", "soup", "cake", "rice", "tea", "milk")
TEXTS = [f"{word} {thing}" for thing in THINGS for word in ("good", "bad")]
LABELS = [(0,), (1,)] * len(THINGS)


def test_the_majority_of_the_training_rows_answers_every_test_row() -> None:
    assert majority_baseline([(1,), (1,), (0,)], [(0,), (0,), (0,), (1,)]) == pytest.approx(
        {"accuracy": 0.25, "macro_f1": 0.2}
    )


def test_the_majority_of_label_sets() -> None:
    figures = majority_baseline([(0, 2), (2, 0), (1,)], [(0, 2), (1,)], multi_label=True)
    assert figures["exact_match"] == 0.5
    assert figures["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))


def test_word_counts_learn_what_words_tell() -> None:
    assert text_baseline(TEXTS, LABELS, ["good fish", "bad corn"], [(0,), (1,)]) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert text_baseline(TEXTS, LABELS, ["good fish", "bad corn"], [(1,), (0,)])["accuracy"] == 0


def test_word_counts_of_single_characters() -> None:
    assert (
        text_baseline(["好 茶", "坏 茶", "好 饭", "坏 饭"], [(0,), (1,), (0,), (1,)], ["好"], [(0,)])["accuracy"] == 1
    )


def test_word_counts_learn_several_labels() -> None:
    texts = [f"{a} {b}".strip() for _ in range(8) for a in ("red", "") for b in ("big", "")]
    labels = [tuple(n for n, word in enumerate(("red", "big")) if word in text) for text in texts]
    figures = text_baseline(texts, labels, ["red big", "red", "big", ""], [(0, 1), (0,), (1,), ()], multi_label=True)
    assert figures["exact_match"] == 1


def test_a_label_that_all_rows_have_is_no_obstacle() -> None:
    labels = [(0,), (0, 1)] * len(THINGS)
    assert text_baseline(TEXTS, labels, ["good fish"], [(0,)], multi_label=True)["exact_match"] == 1


@pytest.mark.parametrize(("texts", "labels"), [(["a", "b"], [(1,), (1,)]), (["!", "?"], [(0,), (1,)])])
def test_nothing_is_claimed_where_nothing_can_be_learned(texts: list[str], labels: list[tuple[int]]) -> None:
    assert text_baseline(texts, labels, ["a"], [(1,)]) == {}
