"""Measures Tenora against what one would use instead, on this machine and in one run.

    python -m bench.serving --quick --json results.json
    python -m bench.serving --llama-server build/bin/llama-server --markdown results.md --plots plots

Models and adapters have random weights, are made by the run itself, and are kept in --cache for the next one. Systems
take turns (A B C A B C …), so what disturbs the machine disturbs all of them; only the ratios mean anything elsewhere.
Progress goes to stderr, the table to stdout. docs/benchmarks.md says what each figure means.
"""

import argparse
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import cores, describe_machine

if TYPE_CHECKING:
    from bench.context import Bench
    from bench.sections.section import Section

QUICK_ROUNDS, ROUNDS, MOST_THREADS = 3, 5, 2
SHAPES = "llama-135m, gpt2-medium, embedded, or a folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every section came to its end."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's affair, not the reader's
    from bench.context import Bench, Options
    from bench.markdown import render
    from bench.report import Report

    options = Options(
        shape=args.shape,
        quick=args.quick,
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS),
        threads=args.threads,
        dtype=args.dtype,
        cache=args.cache.resolve(),
        llama_server=args.llama_server,
    )
    report = Report(args.json, describe_machine(args.threads, args.llama_server), options.workload())
    failed = run_sections(Bench(options, report), args.sections)
    text = render(report.document)
    print(text)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.plots:
        from bench.plots import draw

        for path in draw(report.document, args.plots):
            sys.stderr.write(f"drew {path}\n")
    return 1 if failed else 0


def run_sections(bench: "Bench", sections: Sequence["Section"]) -> list[str]:
    """Run one after the other, saving what there is after each; returns the names of those that failed."""
    failed = []
    bench.report.save()
    with bench:
        for section in sections:
            bench.section = section.name
            bench.say(section.about)
            try:
                section.run(bench)
            except KeyboardInterrupt:
                bench.say("interrupted; what was measured until now is kept")
                failed.append(section.name)
                break
            except Exception as error:
                traceback.print_exc()
                failed.append(section.name)
                for ratio in section.ratios:
                    if bench.report.document["ratios"][ratio] is None:
                        bench.report.reason(ratio, f"its section failed: {error}")
            bench.report.save()
    return failed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the sections to run are in ``sections``."""
    from bench.sections import SECTIONS

    names = [section.name for section in SECTIONS]
    listing = "\n".join(f"  {s.name:14} {s.about}{'' if s.quick else ' (not in --quick)'}" for s in SECTIONS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving",
        description=__doc__,
        epilog=f"sections:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the sections with ratios, in a few minutes")
    parser.add_argument("--only", metavar="NAME,…", help="these sections, whether they are quick or not")
    parser.add_argument("--shape", default="llama-135m", help=f"base of the standard case: {SHAPES} [%(default)s]")
    parser.add_argument("--rounds", type=int, help=f"rounds of each system [{ROUNDS}; with --quick {QUICK_ROUNDS}]")
    parser.add_argument(
        "--llama-server", type=Path, metavar="PATH", help="llama.cpp's server; without it that rival is left out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there, after each section anew")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNG files into this folder")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()) / "tenora-bench",
                        help="where models and adapters are kept [%(default)s]")  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=min(MOST_THREADS, cores()), help="threads of every system [%(default)s]"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="numbers of every system [%(default)s]"
    )
    args = parser.parse_args(arguments)
    wanted = args.only.split(",") if args.only else [s.name for s in SECTIONS if s.quick or not args.quick]
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"there is no section {', '.join(unknown)}: choose from {', '.join(names)}")
    if args.llama_server is not None and not os.access(args.llama_server, os.X_OK):
        parser.error(f"--llama-server: {args.llama_server} is no program")
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds: at least one")
    args.sections = [section for section in SECTIONS if section.name in wanted]
    return args


if __name__ == "__main__":
    sys.exit(main())
