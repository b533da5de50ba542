"""What is found in rows that can be used: figures, places and severity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.training.data.conftest import messages
from training.data.findings import Finding, RowLength
from training.data.inspection import inspect
from training.data.instruct import read_exchanges
from training.data.report import finding_lines
from training.data.rows import DocumentRow, InstructRow, Place, PreferenceRow, TextRow

LONG = "The parcel that I ordered in the second week of May has still not arrived at my address"


def place(number: int, file: str = "train.jsonl") -> Place:
    return Place(Path(file), "line", number)


def texts(*rows: tuple[str, Any], file: str = "train.jsonl") -> list[TextRow]:
    """Rows of text and label, or labels, on lines 1, 2, …"""
    labels = [label if isinstance(label, tuple) else (label,) for _, label in rows]
    pairs = zip(rows, labels, strict=True)
    return [TextRow(place(number, file), text, of_row) for number, ((text, _), of_row) in enumerate(pairs, start=1)]


def instructions(*rows: tuple[str, str]) -> list[InstructRow]:
    columns = [{"instruction": instruction, "output": output} for instruction, output in rows]
    read = [read_exchanges("instruction", values, refuse) for values in columns]
    return [InstructRow(place(number), exchanges or ()) for number, exchanges in enumerate(read, start=1)]


def refuse(what: str, mend: str) -> None:
    raise AssertionError(what)


def found(parts: dict[str, Sequence[Any]], **options: Any) -> list[tuple[str, str, list[int]]]:
    """(severity, message, line numbers) of every finding but those of few rows, which all of these are."""
    findings = inspect(parts, **options)
    return [
        (finding.severity, finding.message, [each.number for each in finding.places])
        for finding in findings
        if finding.kind != "rare labels"
    ]


def balanced(count: int, file: str = "train.jsonl") -> list[TextRow]:
    things = ("bread", "soup", "cake", "rice", "tea", "milk", "fish", "corn", "jam", "salt")
    return texts(
        *((f"{'fine' if number % 2 else 'awful'} {thing}", number % 2) for number, thing in enumerate(things[:count])),
        file=file,
    )


def test_good_rows_have_no_findings() -> None:
    rows = [*balanced(10), *texts(*((f"{thing} {thing}", number % 2) for number, thing in enumerate("abcdefgh")))]
    assert inspect({"data": rows}, labels=("bad", "good")) == []


def test_duplicates_are_named_beside_what_they_repeat() -> None:
    rows = texts((LONG, 0), ("x", 1), (LONG, 0), (LONG, 0), ("y", 1))
    [finding] = [each for each in inspect({"data": rows}, labels=("a", "b")) if each.kind == "duplicates"]
    assert finding.message == "2 of 5 training rows repeat an earlier one word for word"
    assert (finding.places, finding.beside) == ((place(3), place(4)), (place(1), place(1)))


def test_near_duplicates_are_a_note() -> None:
    rows = texts((LONG, 0), ("x", 1), (LONG + "!!", 0), ("y", 1))
    assert found({"data": rows}, labels=("a", "b")) == [("note", "1 of 4 training rows is nearly an earlier one", [3])]


def test_leaks_exact_and_near() -> None:
    held_out = texts(("fine parcels", 1), (LONG, 1), (f"{LONG}, sadly", 0), ("x y", 0), file="test.jsonl")
    rows = texts(("awful soup", 0), (LONG, 1), ("fine cake", 1), ("odd jam", 0))
    findings = {each.kind: each for each in inspect({"train": rows, "test": held_out}, labels=("a", "b"))}
    assert findings["leak"].message == "1 of 4 test rows asks what a training row asks"
    assert (findings["leak"].places, findings["leak"].beside) == ((place(2, "test.jsonl"),), (place(2),))
    assert findings["near leak"].message == "1 of 4 test rows is nearly a training row"
    assert (findings["near leak"].places, findings["near leak"].beside) == ((place(3, "test.jsonl"),), (place(2),))
    assert {each.severity for each in (findings["leak"], findings["near leak"])} == {"warning"}


def test_a_leak_of_the_question_counts_whatever_the_answer() -> None:
    train, held_out = instructions(("Name it.", "Bread.")), instructions(("Name it.", "Soup."))
    assert found({"data": train, "validation": held_out}) == [
        ("warning", "1 of 1 validation row asks what a training row asks", [1])
    ]


def test_other_labels_for_the_same_text_are_a_warning() -> None:
    rows = texts((LONG, 0), ("x", 1), (LONG, 1), (LONG, 0))
    assert ("warning", "1 of 4 training rows has an earlier row's text and other labels", [3]) in found(
        {"data": rows}, labels=("a", "b")
    )


def test_other_answers_to_the_same_question_are_a_note() -> None:
    rows = instructions(("Name a fruit.", "Apple."), ("Name a fruit.", "Pear."), ("Name a colour.", "Red."))
    assert found({"data": rows}) == [
        ("note", "1 of 3 training rows asks what an earlier row asks and answers otherwise", [2])
    ]


def test_preferences_turned_round_and_between_the_same() -> None:
    [asked] = instructions(("Say hello.", "x"))
    prompt = asked.exchanges[0].prompt
    pairs = [("Hello", "What?"), ("Hello", "Go away"), ("What?", "Hello"), ("Hm", "Hm ")]
    rows = [PreferenceRow(place(number), prompt, *pair) for number, pair in enumerate(pairs, start=1)]
    assert found({"data": rows}) == [
        ("warning", "1 of 4 training rows prefers what an earlier row rejects", [3]),
        ("warning", "1 of 4 training rows prefers an answer to itself", [4]),
    ]


def test_documents_are_compared_too() -> None:
    documents = [DocumentRow(place(number), text) for number, text in enumerate((LONG, "x", LONG), start=1)]
    assert found({"data": documents}) == [("warning", "1 of 3 training rows repeats an earlier one word for word", [3])]


def test_conversations_are_compared_by_all_that_was_said() -> None:
    def row(number: int, *turns: str) -> InstructRow:
        exchanges = read_exchanges("messages", {"messages": messages(*turns)}, refuse)
        return InstructRow(place(number), exchanges or ())

    first = row(1, "user: Hi", "assistant: Hello", "user: Bye", "assistant: Goodbye")
    same = row(2, "user: Hi", "assistant: Hello", "user: Bye", "assistant: Goodbye")
    other = row(3, "user: Hey", "assistant: Hello", "user: Bye", "assistant: Goodbye")
    assert [each.places for each in inspect({"data": [first, same, other]}) if each.kind == "duplicates"] == [
        (place(2),)
    ]


def test_imbalance_says_what_always_saying_it_would_score() -> None:
    rows = texts(*((f"{letter}{letter}", 0) for letter in "abcdefghijklmnop"), ("q", 1), ("r", 1), ("s", 1), ("t", 1))
    assert [each.message for each in inspect({"data": rows}, labels=("ham", "spam"))] == [
        "the label 'ham' has 16 of 20 training rows (80%, which is the accuracy of always saying it)",
        "the label spam (4) stands in fewer than 8 training rows",
    ]
    assert inspect({"data": rows}, labels=("ham", "spam"))[1].places == tuple(place(number) for number in range(17, 21))


def test_absent_labels() -> None:
    parts = {"data": balanced(10), "validation": texts(("odd", 0), file="v.jsonl")}
    assert [
        (each.severity, each.message)
        for each in inspect(parts, labels=("bad", "good", "odd"))
        if each.kind == "absent labels"
    ] == [
        ("warning", "the label odd stands in no training row"),
        ("note", "2 labels, good, odd stand in no validation row"),
    ]


def test_rows_of_several_labels() -> None:
    rows = texts(*((f"{letter}{letter}", (0, 1)) for letter in "abcdefgh"), ("i", ()), ("j", (0,)))
    assert found({"data": rows}, labels=("a", "b"), multi_label=True) == [
        ("warning", "the label 'a' has 9 of 10 training rows (90%)", []),
        ("note", "1 of 10 training rows has no label", [9]),
    ]


def test_lengths() -> None:
    rows = instructions(("Name a fruit.", "Apple."), ("Name a colour.", "Red."), ("Count.", "One."))
    lengths = {"data": [RowLength(10, 3), RowLength(2000, 4), RowLength(9, 0)]}
    assert found({"data": rows}, lengths=lengths, max_length=1000) == [
        ("warning", "1 of 3 training rows trains no token", [3]),
        ("warning", "1 of 3 training rows has more than 1,000 tokens, the longest 2,000", [2]),
    ]
    assert found({"data": rows}) == []


def test_answers_of_no_weight_are_found_without_lengths() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0}]
    row = InstructRow(place(1), read_exchanges("messages", {"messages": turns}, refuse) or ())
    assert found({"data": [row]}) == [("warning", "1 of 1 training row trains no token", [1])]


def test_files_passed_over_are_named() -> None:
    assert found({"data": balanced(10)}, labels=("bad", "good"), passed_over=[Path("b.md"), Path("a/a.png")]) == [
        ("note", "2 files passed over: a.png, b.md", [])
    ]


def test_lines_show_the_first_pairs_and_all_rows_by_their_numbers() -> None:
    pairs = Finding(
        "duplicates", "warning", "Seven.", "Mend.", tuple(map(place, range(2, 9))), tuple(place(1) for _ in range(7))
    )
    rows = Finding("over-long", "note", "Four.", "Mend.", (place(1), place(2), place(5), place(1, "b.jsonl")))
    assert list(finding_lines([pairs, rows])) == [
        "warning: Seven. — Mend.",
        *(f"  train.jsonl line {number}: see train.jsonl line 1" for number in range(2, 7)),
        "  and 2 more",
        "note: Four. — Mend.",
        "  train.jsonl lines 1-2, 5",
        "  b.jsonl line 1",
    ]
