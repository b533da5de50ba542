"""The adapters that come with the embedded base: something to ask on a machine without a network.

Each folder of `models/adapters` is one, published as `tenora/<folder>`.
"""

from adapters.base import EMBEDDED_ID, BaseSource, shipped_folder
from adapters.errors import BaseModelError
from adapters.manifest import read_manifest
from adapters.names import AdapterName
from adapters.store import Store, Version

TENANT = "tenora"
FOLDER = "adapters"


def publish_shipped(store: Store, base: BaseSource) -> list[Version]:
    """Publish what the store has no version of that fits the base; return what was published.

    An adapter that was published before stays as it is, with its aliases; one of an older embedded base gets a new
    version.

    Raises:
        BaseModelError: ``base`` is not the embedded one, or the adapters are not installed.
    """
    folder = shipped_folder(FOLDER)
    if folder is None:
        raise BaseModelError("the example adapters are not installed: train some, or leave them out", key="examples")
    wanted = {AdapterName(TENANT, one.name): one for one in sorted(folder.iterdir()) if one.is_dir()}
    if any(read_manifest(one).base.fingerprint != base.fingerprint for one in wanted.values()):
        raise BaseModelError(
            f"the example adapters belong to the base {EMBEDDED_ID} that they came with, not to {base.id}",
            key="examples",
        )
    there = set(store.names(TENANT))
    return [
        store.publish(source, name, base)
        for name, source in wanted.items()
        if name not in there or not any(fits(version, base) for version in store.versions(name))
    ]


def fits(version: Version, base: BaseSource) -> bool:
    """Whether a version was made for exactly this base."""
    return version.manifest.base.fingerprint == base.fingerprint
