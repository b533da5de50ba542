"""From a folder that somebody gives to one that could be published: copied, completed and checked as a whole."""

from dataclasses import dataclass
from pathlib import Path

from adapters.adapter import Adapter, copy_adapter, infer_manifest, load_adapter
from adapters.base import BaseSource
from adapters.errors import AdapterExistsError
from adapters.manifest import MANIFEST_FILE, write_manifest
from adapters.templates import PromptTemplate


@dataclass(frozen=True, slots=True)
class Stated:
    """What is said of a plain PEFT folder when it is published, as it says nothing of it itself."""

    template: PromptTemplate | None = None
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    score: bool = False

    @property
    def anything(self) -> bool:
        """Whether anything was said."""
        return self != Stated()


def stage(folder: Path, staged: Path, base: BaseSource, stated: Stated) -> Adapter:
    """Copy an adapter into an empty folder, give it a manifest if it has none, and check all of it.

    Raises:
        AdapterError: It cannot be served, or has a manifest already and something is stated all the same.
    """
    copy_adapter(folder, staged)
    if not (staged / MANIFEST_FILE).exists():
        manifest = infer_manifest(
            staged,
            base,
            template=stated.template,
            labels=stated.labels,
            multi_label=stated.multi_label,
            score=stated.score,
        )
        write_manifest(staged, manifest)
    elif stated.anything:
        message = f"{folder.name} has a {MANIFEST_FILE} already, which states its task, template and labels"
        raise AdapterExistsError(message, key=MANIFEST_FILE)
    return load_adapter(staged, base)
