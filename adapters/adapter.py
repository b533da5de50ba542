"""One adapter, read and checked against its base: what the engine gets."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from adapters.base import BaseSource
from adapters.config import CONFIG_FILE, LoraSpec, read_lora_config
from adapters.errors import AdapterError, AdapterFormatError, AdapterMismatchError, TemplateError
from adapters.extras import copy_extras
from adapters.files import content_digest, copy_regular
from adapters.manifest import MANIFEST_FILE, BaseRef, EosSpec, Manifest, Task, read_manifest
from adapters.templates import PromptInput, PromptTemplate, chat_text, scored_end
from adapters.tensors import Bytes, read_bytes
from adapters.weights import PICKLE_FILE, WEIGHTS_FILE, AdapterWeights, load_weights

FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
MAX_CLASSIFY_LENGTH = 512  # tokens of a text to classify, where nobody said how many it was trained with


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in host memory. ``ref`` is the name it goes by (`tenant/name`), for messages and metrics."""

    digest: str
    ref: str
    manifest: Manifest
    spec: LoraSpec
    weights: AdapterWeights

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.weights.nbytes

    @property
    def template(self) -> PromptTemplate | None:
        """How its prompts are rendered; None for an adapter that classifies."""
        return PromptTemplate.from_manifest(self.manifest.prompt) if self.manifest.prompt else None


def load_adapter(folder: Path, base: BaseSource, *, digest: str | None = None, ref: str = "") -> Adapter:
    """Read the adapter in ``folder`` and check all of it; with ``digest``, its bytes too.

    Raises:
        AdapterFormatError: a file is missing, broken or altered.
        AdapterMismatchError: it belongs to another base, or its parts disagree.
        AdapterUnsupportedError: it asks for what is not served.
        TemplateError: its template does not compile, or is not the one that its manifest states.
    """
    data = read_bytes(folder / WEIGHTS_FILE)
    with ThreadPoolExecutor(1) as hasher:  # beside the checks, as it takes about as long
        hashed = hasher.submit(content_digest, folder, FILES, {WEIGHTS_FILE: data.data})
        try:
            manifest, spec, weights = _read(folder, base, data)
        except AdapterError:
            _check_digest(folder, digest, hashed.result())  # altered bytes explain whatever else is wrong
            raise
    content = hashed.result()
    _check_digest(folder, digest, content)
    return Adapter(content, ref, manifest, spec, weights)


def _read(folder: Path, base: BaseSource, data: Bytes) -> tuple[Manifest, LoraSpec, AdapterWeights]:
    manifest = read_manifest(folder)
    check_base(manifest, base)
    spec = read_lora_config(folder)
    weights = load_weights(folder, spec, base, data)
    _check_task(manifest, weights)
    _check_lengths(manifest, base)
    _check_prompt(manifest, base)
    return manifest, spec, weights


def _check_digest(folder: Path, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        message = f"the files in {folder.name[:12]} are not those that were published: publish the adapter again"
        raise AdapterFormatError(message, key="digest")


def check_base(manifest: Manifest, base: BaseSource) -> None:
    """Refuse an adapter of another base, even one of the same shape."""
    if manifest.base.fingerprint != base.fingerprint:
        raise AdapterMismatchError(
            f"the adapter belongs to the base {manifest.base.id!r} ({manifest.base.fingerprint[:12]}), "
            f"not to {base.id!r} ({base.fingerprint[:12]}): serve it with its own base, or train it again on this one",
            key="base.fingerprint",
        )


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the files of an adapter with its card, and nothing else that may lie beside them."""
    if not source.is_dir():
        raise AdapterFormatError(f"there is no folder {source}", key="folder")
    if os.path.lexists(source / PICKLE_FILE):
        message = f"{PICKLE_FILE} is a pickle and is never opened: remove it, and save with safe_serialization=True"
        raise AdapterFormatError(message, key=PICKLE_FILE)
    copy_regular(source / CONFIG_FILE, target / CONFIG_FILE)
    copy_regular(source / WEIGHTS_FILE, target / WEIGHTS_FILE)
    modified = (source / WEIGHTS_FILE).stat()
    os.utime(target / WEIGHTS_FILE, ns=(modified.st_atime_ns, modified.st_mtime_ns))
    if os.path.lexists(source / MANIFEST_FILE):
        copy_regular(source / MANIFEST_FILE, target / MANIFEST_FILE)
    copy_extras(source, target)


def infer_manifest(
    folder: Path,
    base: BaseSource,
    *,
    template: PromptTemplate | None = None,
    labels: tuple[str, ...] | None = None,
    multi_label: bool = False,
    score: bool = False,
) -> Manifest:
    """A manifest for a plain PEFT folder. What is not given is inferred, and ``recipe.inferred`` says what was.

    The task comes from task_type, else from whether there is a head; the template is the tokenizer's chat template
    where it has one, else plain; labels are LABEL_0, LABEL_1 … PEFT does not say what the numbers of a head mean: they
    are those of a text's one label, unless ``multi_label`` or ``score`` is set.

    Raises:
        AdapterMismatchError: what is given does not fit the task, or each other.
    """
    spec = read_lora_config(folder)
    weights = load_weights(folder, spec, base)
    task: Task = "generate" if not weights.head else "score" if score else "classify"
    _check_stated(task, template, labels, multi_label=multi_label, score=score)
    inferred: list[JsonValue] = ["max_length"] if spec.task_type else ["task", "max_length"]
    prompt = eos = None
    if task == "classify":
        if labels is None:
            labels = tuple(f"LABEL_{index}" for index in range(weights.num_labels or 0))
            inferred.append("labels")
    else:
        if template is None:
            template = PromptTemplate.named("chat" if base.tokenizer().chat_template else "plain")
            inferred.append("prompt")
        prompt = template.to_manifest(base.tokenizer())
        eos = eos_of(base) if task == "generate" else scored_end(base.tokenizer())
    return Manifest(
        task=task,
        base=BaseRef(id=base.id, revision=base.revision, fingerprint=base.fingerprint),
        prompt=prompt,
        labels=labels,
        problem_type="multi_label" if multi_label else "single_label",
        max_length=min(base.max_length, MAX_CLASSIFY_LENGTH) if task == "classify" else base.max_length,
        eos=eos,
        recipe={"inferred": inferred},
        created=_modified(folder / WEIGHTS_FILE),
        tools={"peft": spec.peft_version} if spec.peft_version else {},
    )


def eos_of(base: BaseSource) -> EosSpec | None:
    """The base's own end-of-text token."""
    tokenizer = base.tokenizer()
    return None if tokenizer.eos_token is None else EosSpec(text=tokenizer.eos_token, id=tokenizer.eos_token_id)


def _modified(path: Path) -> str:
    # Not the present time: importing the same folder twice has to make the same version.
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat()


def _check_stated(
    task: Task, template: PromptTemplate | None, labels: tuple[str, ...] | None, *, multi_label: bool, score: bool
) -> None:
    """Refuse what was said of a plain PEFT folder and does not go with its task."""
    does = {"generate": "generates", "classify": "classifies", "score": "scores"}[task]
    if score and task != "score":
        raise AdapterMismatchError(f"a score needs a head of one number, and this one {does}", key="score")
    if task != "classify" and labels is not None:
        raise AdapterMismatchError(f"labels are for adapters that classify, and this one {does}", key="labels")
    if task != "classify" and multi_label:
        raise AdapterMismatchError(f"several labels are for adapters that classify; this one {does}", key="multi_label")
    if task == "classify" and template is not None:
        message = "a prompt template is for adapters that generate or score, and this one classifies"
        raise AdapterMismatchError(message, key="template")


def _check_task(manifest: Manifest, weights: AdapterWeights) -> None:
    if (manifest.task == "generate") == bool(weights.head):
        there = "a classification head" if weights.head else "no classification head"
        raise AdapterMismatchError(f"the manifest says {manifest.task}, but the weights have {there}", key="task")
    if manifest.task == "score" and weights.num_labels != 1:
        message = f"the manifest says score, which is one number, but the head has {weights.num_labels}"
        raise AdapterMismatchError(message, key="task")
    if manifest.labels is not None and len(manifest.labels) != weights.num_labels:
        message = f"the manifest names {len(manifest.labels)} labels, but the head has {weights.num_labels}"
        raise AdapterMismatchError(message, key="labels")


def _check_lengths(manifest: Manifest, base: BaseSource) -> None:
    if manifest.max_length > base.max_length:
        message = f"max_length {manifest.max_length} is beyond the base's context of {base.max_length} tokens"
        raise AdapterMismatchError(message, key="max_length")


def _check_prompt(manifest: Manifest, base: BaseSource) -> None:
    tokenizer = base.tokenizer()
    if manifest.eos is not None and tokenizer.convert_tokens_to_ids(manifest.eos.text) != manifest.eos.id:
        message = f"the end token {manifest.eos.text!r} has another id in this base's tokenizer than {manifest.eos.id}"
        raise AdapterMismatchError(message, key="eos")
    if manifest.task == "score" and manifest.eos != scored_end(tokenizer):
        message = f"what is scored ends in {scored_end(tokenizer).text!r} with this base's tokenizer: train it again"
        raise AdapterMismatchError(message, key="eos")
    if manifest.prompt is None:
        return
    if manifest.prompt.template == "chat" and manifest.prompt.text != chat_text(tokenizer):
        message = (
            "the base's chat template is not the one that the adapter was trained with: use the same tokenizer files"
        )
        raise TemplateError(message, key="prompt.text")
    golden = manifest.prompt.golden
    template = PromptTemplate.from_manifest(manifest.prompt)
    ids = template.encode(tokenizer, PromptInput.from_instruction(golden.instruction, golden.input))
    if tuple(ids) != golden.ids:
        raise TemplateError(
            "the golden prompt no longer has the token ids that it was trained with: the template, the tokenizer or "
            f"its chat template has changed ({len(ids)} ids here, {len(golden.ids)} in the manifest)",
            key="prompt.golden",
        )
