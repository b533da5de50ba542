"""Measures a training step against transformers' Trainer and TRL's SFTTrainer, on this machine and in one process.

    python -m bench.training --quick --json training.json
    python -m bench.training --markdown training.md --plots plots

Models have random weights of real shapes. All systems have the same weights, rows and adapter to begin with and take
turns batch by batch (A B C A B C …); ratios are medians over the batches. Progress goes to stderr, the tables to
stdout. TRL is a rival if it is installed.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.machine import cores, describe_machine

QUICK_ROUNDS, ROUNDS, MOST_THREADS = 6, 14, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every section came to its end."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' and TRL's affair, not the reader's
    import torch

    from bench.trainers.findings import Findings
    from bench.trainers.pages import draw, render

    torch.set_num_threads(args.threads)
    machine = {**describe_machine(args.threads, None), "trl": _trl_version()}
    workload = {"quick": args.quick, "rounds": args.rounds, "sections": args.sections}
    findings = Findings(args.json, machine, workload)
    failed = measure(findings, args.sections, args.rounds, {})
    text = render(findings.document)
    print(text)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.plots:
        for path in draw(findings.document, args.plots):
            say(f"drew {path}")
    return 1 if failed else 0


def measure(findings: Any, names: Sequence[str], rounds: int, shapes: dict[str, dict[str, Any]]) -> list[str]:
    """Run sections one after the other, saving after each; returns the names of those that failed.

    Args:
        shapes: Sizes of the models (gpt2, distilbert); empty for the real ones.
    """
    from transformers.utils import logging

    from bench.trainers.sections import SECTIONS, Bench

    logging.set_verbosity_error()
    bench = Bench(findings, rounds, shapes, say)
    failed = []
    for name in names:
        say(name)
        try:
            SECTIONS[name][0](bench)
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            findings.reason(name, f"the section failed: {error}")
        findings.save()
    return failed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the names of the sections to run are in ``sections``."""
    from bench.trainers.sections import SECTIONS

    parser = argparse.ArgumentParser(
        prog="python -m bench.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the ratios only, in less than five minutes")
    parser.add_argument("--only", metavar="NAME,…", help=f"these sections: {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, help=f"batches that are timed [{ROUNDS}; with --quick {QUICK_ROUNDS}]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there, after each section anew")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNG files into this folder")
    parser.add_argument(
        "--threads", type=int, default=min(MOST_THREADS, cores()), help="threads of every system [%(default)s]"
    )
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    if args.rounds < 1:
        parser.error("--rounds: at least one")
    args.sections = (
        args.only.split(",")
        if args.only
        else [name for name, (_, quick) in SECTIONS.items() if quick or not args.quick]
    )
    if unknown := sorted(set(args.sections) - set(SECTIONS)):
        parser.error(f"there is no section {', '.join(unknown)}: choose from {', '.join(SECTIONS)}")
    return args


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _trl_version() -> str | None:
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
