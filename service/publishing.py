"""What bringing an adapter to the server has in common, whichever way it comes."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.config import LoraSpec, read_lora_config
from adapters.errors import AdapterError, AdapterNameError
from adapters.names import AdapterName
from service.errors import AdapterUnknownError, InvalidRequestError, StorageFullError

_ABSOLUTE = re.compile(r"(?<![\w.])/(?:[^\s/'\"`]+/)+([^\s/'\"`]+)")
"""An absolute path; its last part may be told."""


def own_name(text: str, tenant: str | None, *, param: str = "name") -> AdapterName:
    """An adapter that a caller of the tenant may bring; the tenant itself may be left out.

    Raises:
        AdapterNameError: It is no name.
        AdapterUnknownError: It is another tenant's, whether it exists or not.
    """
    qualified = f"{tenant}/{text}" if tenant is not None and "/" not in text else text
    try:
        name = AdapterName.parse(qualified)
    except AdapterNameError as error:
        raise AdapterNameError(error.message, key=param) from error
    if tenant is not None and name.tenant != tenant:
        raise AdapterUnknownError(str(name), param=param)
    return name


def rank_of(spec: LoraSpec) -> int:
    """The largest rank that an adapter has anywhere; 0 for a head alone."""
    return 0 if spec.head_only else max([spec.r, *spec.rank_pattern.values()])


def check_rank(folder: Path, most: int, *, param: str) -> None:
    """Refuse an adapter that no slot of this server can hold."""
    rank = rank_of(read_lora_config(folder))
    if rank > most:
        raise InvalidRequestError(
            f"The adapter has rank {rank}; this server holds ranks up to {most} (TENORA_MAX_LORA_RANK).", param=param
        )


def without_paths(message: str, folder: Path, root: Path) -> str:
    """A message about a folder that tells nothing of where on our disks anything is."""
    for place in (folder, root.resolve(), root):
        message = message.replace(f"{place}/", "").replace(str(place), folder.name)
    return _ABSOLUTE.sub(r"\1", message)


@contextmanager
def telling_nothing(folder: Path, root: Path) -> Iterator[None]:
    """Take our paths out of whatever an adapter is refused with; the field, file or tensor at fault stays named."""
    try:
        yield
    except AdapterError as error:
        raise type(error)(without_paths(error.message, folder, root), key=error.key) from error


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Say it in one sentence when the disk is full.

    Raises:
        StorageFullError: It is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(
            "The server's disk is full, and nothing of the upload was kept: delete versions that nobody uses, or ask "
            "whoever runs the server for room."
        ) from error
