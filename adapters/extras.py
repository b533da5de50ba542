"""Files that tell about an adapter and change nothing in what it does: its card, the report of its training, plots.

They lie beside the adapter's own files, go into the store with them, and are no part of the digest. They come from
strangers, so they are few, small and regular files; whatever else lies in the folder is left alone.
"""

import os
import re
from pathlib import Path

from adapters.errors import AdapterFormatError
from adapters.files import copy_regular

CARD_FILE, REPORT_FILE = "README.md", "report.json"
MAX_EXTRAS = 12
MAX_EXTRA_BYTES = 10**6
_NAMES = re.compile(rf"{re.escape(CARD_FILE)}|{re.escape(REPORT_FILE)}|\w[\w. +()-]{{0,119}}\.png")


def is_extra(name: str) -> bool:
    """Whether a file of this name is one of them."""
    return _NAMES.fullmatch(name) is not None


def find_extras(folder: Path) -> dict[str, Path]:
    """{name: path} of README.md, report.json and the plots (`*.png`) in ``folder``, sorted.

    Raises:
        AdapterFormatError: there are more than `MAX_EXTRAS`.
    """
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_extra(entry.name):
                found[entry.name] = folder / entry.name
            if len(found) > MAX_EXTRAS:
                message = (
                    f"{folder.name} has more than {MAX_EXTRAS} files beside the adapter's own ({CARD_FILE}, "
                    f"{REPORT_FILE} and *.png): remove some plots"
                )
                raise AdapterFormatError(message, key=entry.name)
    return dict(sorted(found.items()))


def copy_extras(source: Path, target: Path) -> None:
    """Copy them from one folder to another.

    Raises:
        AdapterFormatError: there are too many, or one is too large, a link, or no regular file.
    """
    for name, path in find_extras(source).items():
        copy_regular(path, target / name, most=MAX_EXTRA_BYTES)
