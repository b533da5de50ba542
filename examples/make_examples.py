"""Writes the example files, the same bytes every time.

python -m examples.make_examples            write them
python -m examples.make_examples --check    say whether the files are what this makes
python -m examples.make_examples --counts   rows by family and label
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from examples.generator.instructions import build_instructions
from examples.generator.reviews import build_reviews
from examples.generator.rows import to_jsonl
from examples.generator.tickets import build_tickets

FOLDER = Path(__file__).resolve().parent


def make_files() -> dict[str, str]:
    """File name -> text."""
    instructions, reviews, tickets = build_instructions(), build_reviews(), build_tickets()
    return {
        "instructions_train.jsonl": to_jsonl(instructions.train),
        "instructions_heldout.jsonl": to_jsonl(instructions.heldout),
        "reviews_train.jsonl": to_jsonl(reviews.train),
        "reviews_heldout.jsonl": to_jsonl(reviews.heldout),
        "tickets_train.jsonl": to_jsonl(tickets.train),
        "tickets_heldout.jsonl": to_jsonl(tickets.heldout),
    }


def counts() -> str:
    """A table of rows by family or label, training and held-out."""
    instructions, reviews, tickets = build_instructions(), build_reviews(), build_tickets()
    train = Counter(row.family for row in instructions.train)
    train.update(row.label for row in reviews.train + tickets.train)
    heldout = Counter(row.family for row in instructions.heldout)
    heldout.update(row.label for row in reviews.heldout + tickets.heldout)
    return "\n".join(f"| {name} | {number} | {heldout[name]} |" for name, number in train.most_common())


def main() -> int:
    """Do what the arguments say; 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m examples.make_examples", description="Make the example data.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--counts", action="store_true", help="print the rows by family and label")
    arguments = parser.parse_args()
    if arguments.counts:
        print(counts())
        return 0
    differing = []
    for name, text in make_files().items():
        path = FOLDER / name
        if arguments.check:
            if not path.exists() or path.read_bytes() != text.encode("ascii"):
                differing.append(name)
        else:
            path.write_bytes(text.encode("ascii"))
            print(f"{name}: {text.count(chr(10))} rows, {len(text)} bytes")
    for name in differing:
        print(f"{name}: not what the script makes; run python -m examples.make_examples", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
