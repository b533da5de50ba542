"""Train again the adapters that come with the embedded base.

    python -m models.make_adapters                 all of them       (`make adapters` sets up the environment first)
    python -m models.make_adapters sentiment       only this one

Each is one recipe on one of the example data sets. What a run publishes goes to models/adapters/<name>: PEFT's two
files, our manifest, the card with its figures, and the pictures. The rest of the run stays in build/adapters.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from adapters.shipped import TENANT

ROOT = Path(__file__).resolve().parents[1]
NO_LICENSE = "It states no license: add one to the front matter before you share it."
SHIPPED = ROOT / "models" / "adapters"
RECIPES = {
    "instruct": ("instruct", "demo-instruct"),
    "sentiment": ("classify", "demo-sentiment"),
    "tickets": ("classify", "demo-tickets"),
}


def make(name: str, build: Path) -> Path:
    """Train one adapter and put it in its place; return that place."""
    task, recipe = RECIPES[name]
    run = build / name
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "service.cli", "train", task, "--recipe", recipe, "--output", str(run)]
    # Published aside only so that the card carries the name that it will be served under.
    command += ["--publish", f"{TENANT}/{name}", "--store", str(run / "store")]
    subprocess.run(command, cwd=ROOT, check=True)
    place = SHIPPED / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run / "adapter", place)
    card = place / "README.md"
    card.write_text(licensed(card.read_text()))
    return place


def licensed(card: str) -> str:
    """The card with the license of rows written for this project, trained on a base under a license of its own.

    Raises:
        ValueError: The card says nothing of a license that is missing.
    """
    if NO_LICENSE not in card:
        raise ValueError("the card states a license already")
    stated = card.replace(NO_LICENSE, "Its rows are under Apache-2.0, its base under CC BY-SA 4.0, and so is it.")
    return stated.replace("---\n", "---\nlicense: cc-by-sa-4.0\n", 1)


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m models.make_adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(RECIPES)}; all if none is named")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "adapters", help="folder of the runs")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"there is no adapter {', '.join(sorted(unknown))}: choose from {', '.join(RECIPES)}")
    for name in args.names or RECIPES:
        print(f"{make(name, args.build)} is made")


if __name__ == "__main__":
    main()
