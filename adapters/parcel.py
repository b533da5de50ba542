"""What may be sent as an adapter: few files of known names, none larger than it may be, no pickle among them.

Light on purpose: the HTTP process, which knows no torch, uses it while the bytes arrive.
"""

from adapters.config import CONFIG_FILE
from adapters.errors import AdapterFormatError
from adapters.extras import CARD_FILE, MAX_EXTRA_BYTES, REPORT_FILE, is_extra
from adapters.files import MAX_JSON
from adapters.manifest import MANIFEST_FILE

WEIGHTS_FILE = "adapter_model.safetensors"  # as in adapters.weights, which needs torch
START = 9
"""Bytes at the beginning of a safetensors file that tell it from others: the header's length, and its brace."""
MAX_HEADER = 100 * 10**6  # bytes; the format's own bound
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
KNOWN = f"{CONFIG_FILE}, {WEIGHTS_FILE}, {MANIFEST_FILE}, {CARD_FILE}, {REPORT_FILE} and *.png"


def largest(name: str, most: int) -> int:
    """How many bytes a file of this name may have, where ``most`` is the bound of all together.

    Raises:
        AdapterFormatError: It is no file of an adapter.
    """
    if name == WEIGHTS_FILE:
        return most
    if name in (CONFIG_FILE, MANIFEST_FILE):
        return min(most, MAX_JSON)
    if is_extra(name):
        return min(most, MAX_EXTRA_BYTES)
    if name.lower().endswith(_PICKLES):
        message = f"{_shown(name)} is a pickle and is never opened: leave it out, and save with safe_serialization=True"
        raise AdapterFormatError(message, key=name[:200])
    raise AdapterFormatError(
        f"{_shown(name)} is no file of an adapter: leave it out; taken are {KNOWN}", key=name[:200]
    )


def check_size(name: str, size: int, most: int) -> None:
    """Refuse a file that has grown beyond what it may have."""
    if size > (bound := largest(name, most)):
        raise AdapterFormatError(f"{name} is larger than {bound} bytes: make it smaller", key=name)


def check_start(start: bytes) -> None:
    """Refuse weights that are no safetensors file, from their first `START` bytes.

    Raises:
        AdapterFormatError: They are a pickle under another name, or something else.
    """
    if len(start) == START and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return
    # torch.save writes a zip archive; older versions, and pickle itself, begin with the protocol's opcode.
    what = "a pickle under another name" if start.startswith((b"PK", b"\x80")) else "no safetensors file"
    raise AdapterFormatError(f"{WEIGHTS_FILE} is {what}: save it with safetensors", key=WEIGHTS_FILE)


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")
