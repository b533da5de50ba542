"""What a run leaves on disk, in its own folder and beside its adapter."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from training.reporting.card import write_card
from training.reporting.results import Results, write_report, write_results
from training.reporting.steps_csv import write_steps


def write_run(folder: Path, results: Results) -> list[Path]:
    """Write results.json and results.csv into a run's folder; returns the files."""
    return [write_results(folder, results), write_steps(folder, results)]


def write_beside(folder: Path, results: Results, name: str | None = None, pictures: Sequence[Path] = ()) -> list[Path]:
    """Write report.json and README.md next to an adapter's files, and copy the pictures there; returns the files.

    Args:
        folder: the adapter's; publishing takes these files along.
        results: of the run.
        name: under which the adapter is to be published, tenant/name.
        pictures: as ``draw_all`` drew them into the run's folder.
    """
    copies = [Path(shutil.copy(picture, folder / picture.name)) for picture in pictures]
    card = write_card(folder, results, name, [picture.name for picture in copies])
    return [write_report(folder, results), card, *copies]
