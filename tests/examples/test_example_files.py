"""The committed files: made by the script, well formed, balanced, and the two parts apart."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.generator import corrections, passive, rewriting, vocabulary
from examples.generator.instructions import build_instructions
from examples.generator.material import FOLDER as MATERIAL
from examples.generator.phrasing import Phrasings
from examples.generator.reviews import build_reviews
from examples.generator.rows import InstructionRow, ReviewRow, normalise
from examples.generator.tickets import build_tickets
from examples.generator.vocabulary import TURNED
from examples.make_examples import FOLDER, counts, main, make_files
from tests.examples.reading import read, sentences

SHARED_DATA = FOLDER.parent.parent / "shared" / "data"
INSTRUCTIONS = build_instructions()
REVIEWS = build_reviews()
TICKETS = build_tickets()
PHRASINGS = {
    id(value): value
    for module in (passive, rewriting, corrections, vocabulary)
    for value in vars(module).values()
    if isinstance(value, Phrasings)
}.values()
# The five sentences that a trained classifier is asked about at the end of a run.
ASKED_LATER = (
    "It was good.",
    "Not a fan, don't recommend.",
    "Better than the first one.",
    "This is not worth watching even once.",
    "This one is a pass.",
)


def test_the_files_are_what_the_script_makes() -> None:
    made = make_files()
    assert made == make_files()
    for name, text in made.items():
        assert (FOLDER / name).read_bytes() == text.encode("ascii"), name
    assert sum(len(text) for text in made.values()) < 1_000_000


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_instruction_rows_are_well_formed(part: str) -> None:
    rows = read(f"instructions_{part}.jsonl")
    assert len(rows) >= (1100 if part == "train" else 180)
    seen = set()
    for row in rows:
        assert list(row) == ["instruction", "input", "output"]
        assert all(isinstance(value, str) and value == value.strip() for value in row.values())
        assert row["instruction"] and row["output"]
        text = "|".join(row.values())
        assert text.isascii() and "{" not in text and "  " not in text
        assert row["output"][0].isupper() and row["output"][-1] in ".?!"
        seen.add((normalise(row["instruction"]), normalise(row["input"])))
    assert len(seen) == len(rows)
    assert 0.4 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.65


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_review_rows_are_well_formed_and_balanced(part: str) -> None:
    rows = read(f"reviews_{part}.jsonl")
    assert len(rows) >= (1200 if part == "train" else 300)
    for row in rows:
        assert list(row) == ["text", "label"]
        text = row["text"]
        assert text.isascii() and text == text.strip() and "{" not in text and "  " not in text
        assert text[0].isupper() and text[-1] in ".?!"
        assert 1 <= len(text.split()) <= 45
    assert Counter(row["label"] for row in rows) == {
        "negative": len(rows) // 2,
        "positive": len(rows) // 2,
    }
    assert len({normalise(row["text"]) for row in rows}) == len(rows)
    assert not {normalise(row["text"]) for row in rows} & {normalise(text) for text in ASKED_LATER}


def test_the_mix_of_families() -> None:
    train = Counter(row.family for row in INSTRUCTIONS.train)
    heldout = Counter(row.family for row in INSTRUCTIONS.heldout)
    assert set(train) == set(heldout)
    for counted in (train, heldout):
        assert 0.4 <= counted["passive"] / counted.total() <= 0.5
    assert min(train["spelling"], train["grammar"], train["simile"], train["opposite"]) >= 100
    rewriting_rows = sum(train[f] for f in ("question", "negation", "past", "future", "plural", "polite", "formal"))
    assert rewriting_rows >= 250
    assert set(Counter(row.novelty for row in INSTRUCTIONS.heldout)) == {"fill", "word", "phrasing"}
    assert {row.novelty for row in INSTRUCTIONS.train} == {"train"}


def test_a_held_out_instruction_shares_no_fill_and_no_sentence() -> None:
    assert not {row.fill for row in INSTRUCTIONS.train} & {row.fill for row in INSTRUCTIONS.heldout}
    known: set[str] = set()
    for row in INSTRUCTIONS.train:
        known.update(normalise(text) for text in (row.input, row.output) if text)
        if not row.input:
            known.update(sentences(row.instruction))
    tasks = {normalise(ask) for phrasings in PHRASINGS for ask in (*phrasings.inline, *phrasings.apart)}
    for row in INSTRUCTIONS.heldout:
        own = {normalise(row.output), normalise(row.input)} - {""}
        if not row.input:
            # What stands before the sentence is the task itself, which training knows.
            own.update(s for s in sentences(row.instruction) if s not in tasks)
        assert not own & known, row


def test_the_new_phrasings_are_new() -> None:
    old = {ask for phrasings in PHRASINGS for ask in (*phrasings.apart, *phrasings.inline)}
    new = {ask for phrasings in PHRASINGS for ask in (*phrasings.new_apart, *phrasings.new_inline)}
    assert not old & new
    starts = [ask.partition("{}")[0] for ask in new]
    for row in INSTRUCTIONS.train:
        assert not any(row.instruction.startswith(start) for start in starts), row.instruction
    for row in INSTRUCTIONS.heldout:
        assert any(row.instruction.startswith(start) for start in starts) == (row.novelty == "phrasing")
    assert TURNED in PHRASINGS


def test_unseen_verbs_are_never_made_passive_in_training() -> None:
    new = {row.fill.split()[0] for row in INSTRUCTIONS.heldout if (row.family, row.novelty) == ("passive", "word")}
    assert len(new) >= 12
    known = {row.fill.split()[0] for row in INSTRUCTIONS.train if row.family == "passive"}
    assert len(known) >= 70
    assert not new & known


def test_a_held_out_review_shares_no_frame_fill_or_sentence() -> None:
    train, heldout = REVIEWS.train, REVIEWS.heldout
    frames = {row.frame for row in train} - {""}
    assert len(frames) >= 120
    assert not frames & {row.frame for row in heldout}
    assert not values(train) & values(heldout)
    known = {normalise(row.text) for row in train} | {s for row in train for s in sentences(row.text)}
    for row in heldout:
        assert not {normalise(row.text), *sentences(row.text)} & known, row
    texts = "\n".join(f" {normalise(row.text)} " for row in train)
    clauses = {value for row in heldout for value in row.fills if len(value.split()) >= 4}
    assert len(clauses) >= 60
    assert not [clause for clause in clauses if f" {normalise(clause)} " in texts]


def test_no_frame_and_no_clause_is_worn_out() -> None:
    for label in ("positive", "negative"):
        rows = [row for row in REVIEWS.train if row.label == label]
        whole = sum(not row.frame for row in rows)
        assert whole >= 100
        assert max(Counter(row.frame for row in rows if row.frame).values()) <= 12
        clauses = Counter(value for row in rows for value in row.fills if len(value.split()) >= 4)
        assert max(clauses.values()) <= 10


def test_a_contrast_joins_a_small_flaw_to_praise() -> None:
    # A complaint may stand in praise only as a quibble, and praise in a complaint only as a bright spot.
    for row in REVIEWS.train + REVIEWS.heldout:
        slots = {slot.lower().rstrip("2") for slot in re.findall(r"\{(\w+)\}", row.frame)}
        wrong = {"bad", "poor", "bright"} if row.label == "positive" else {"good", "fine", "quibble"}
        assert not slots & wrong, row.frame


def test_the_material_holds_no_brackets_of_a_broken_mark() -> None:
    for path in sorted(MATERIAL.glob("*.txt")):
        text = path.read_text(encoding="ascii")
        assert text.count("{") == text.count("}"), path.name


@pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="the public data sets to compare with are not beside this checkout"
)
def test_no_row_is_a_row_of_a_public_data_set() -> None:
    texts = {
        normalise(row.text) for part in (REVIEWS.train, REVIEWS.heldout, TICKETS.train, TICKETS.heldout) for row in part
    }
    answers = {
        (normalise(row.instruction), normalise(row.input), normalise(row.output))
        for row in INSTRUCTIONS.train + INSTRUCTIONS.heldout
    }
    for path in sorted(SHARED_DATA.glob("*/*.json*")):
        for row in public_rows(path):
            assert normalise(row.get("text", "")) not in texts, (path.name, row["text"])
            key = tuple(normalise(row.get(name) or "") for name in ("instruction", "input", "output"))
            assert key not in answers, (path.name, key)


def public_rows(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        rows: list[dict[str, str]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def values(rows: list[ReviewRow]) -> set[str]:
    return {value for row in rows for value in row.fills}


def test_rows_know_their_family_without_writing_it() -> None:
    row: InstructionRow = INSTRUCTIONS.train[0]
    assert set(row.record()) == {"instruction", "input", "output"}
    assert row.family


def test_the_readme_gives_the_true_counts() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert counts() in readme
    for name, text in make_files().items():
        assert f"| `{name}` | {len(text.splitlines()):,} |" in readme
    novelties = Counter(row.novelty for row in INSTRUCTIONS.heldout)
    assert f"- {novelties['fill']} have a new fill and a known way" in readme
    assert f"- {novelties['word']} have a new word" in readme
    assert f"- {novelties['phrasing']} have a new fill and are asked" in readme


def test_check_finds_a_file_that_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.make_examples.FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_examples"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["make_examples", "--check"])
    assert main() == 0
    edited = tmp_path / "reviews_train.jsonl"
    edited.write_bytes(edited.read_bytes() + b"\n")
    assert main() == 1
    assert "reviews_train.jsonl" in capsys.readouterr().err
