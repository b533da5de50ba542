"""A task's model with the levers on it: token ids of rows in, losses and logits out."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.activations import fused_activation
from adapters.architecture import ENCODERS
from adapters.heads import BackboneStub
from adapters.narrow import narrow_last, reading
from adapters.native.gelu import native_activation
from training.fast.attention import NAME, attending
from training.fast.dropout import FastDropout
from training.fast.frozen import FrozenWeight
from training.fast.head import CHUNK, cross_entropy
from training.fast.layout import Layout, pack
from training.fast.levers import Levers
from training.fast.linear import Arithmetic, FastFrozen, FastLora

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Target:
    """Position ``position`` of a row predicts ``token``; its loss counts ``weight``."""

    position: int
    token: int
    weight: float


class FastModel:
    """A causal language model or a sequence classifier, perhaps wrapped by PEFT.

    Use it as a context: leaving it gives the model back as it was.

    Args:
        model: The task's model; its parameters stay where they are.
        dtype: In which products run; weights that are trained stay float32.
        pad_id: Fills up rows where they are padded.
        coarse: In which they run inside ``coarsely``; else the same.
        packs: With ``prepack``, weights that are not trained are packed in float32 too.
    """

    def __init__(
        self,
        model: Any,
        levers: Levers,
        dtype: torch.dtype,
        pad_id: int,
        *,
        coarse: torch.dtype | None = None,
        packs: bool = False,
    ) -> None:
        self.model = model
        self.levers = levers
        self.packs = packs and levers.fused and levers.prepack
        self._packs = {torch.bfloat16} if levers.prepack else set()
        self._packs |= {torch.float32} if self.packs else set()
        self._arithmetic, self._coarse = Arithmetic(dtype), (coarse if levers.coarse_curve else None) or dtype
        self._pad_id = pad_id
        self._task_model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._backbone: Any = self._task_model.base_model
        self._head = self._task_model.get_output_embeddings() if _generates(self._task_model) else None
        config = self._task_model.config
        self._causal = not _is_encoder(config)
        self._first_position = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        self._classifier = None if self._head is not None else _head_only(self._task_model, self._backbone)
        self._output: FrozenWeight | None = None
        self._patched: list[nn.Module] = []
        self._trains_base = any(
            _is_linear(module) and module.weight.requires_grad
            for name, module in self._backbone.named_modules()
            if "lora_" not in name
        )
        try:
            self._install()
        except BaseException:
            self.close()
            raise

    @property
    def dtype(self) -> torch.dtype:
        """In which products run just now."""
        return self._arithmetic.dtype

    @contextmanager
    def coarsely(self) -> Iterator[None]:
        """Have products run in the coarse type: for looking on the way, not for what is reported."""
        before, self._arithmetic.dtype = self._arithmetic.dtype, self._coarse
        try:
            yield
        finally:
            self._arithmetic.dtype = before

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._task_model.device
        return device

    def __enter__(self) -> "FastModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model back as it was."""
        for module in self._patched:
            del module.forward
        self._patched.clear()
        self._output = None

    def token_loss(self, rows: Rows, targets: Sequence[Sequence[Target]]) -> Tensor:
        """Σ weight · −log p(token) over all rows, float32, and nothing else of the width of the vocabulary."""
        wanted = self._wanted(rows, targets)
        output = self._outputs(wanted)
        if self.levers.loss_rows and self._output is not None:
            arguments = (output, self._output, self._output_dtype, wanted.tokens, wanted.weights)
            return cross_entropy(*arguments, compiled=self.levers.compiled)
        each = nn.functional.cross_entropy(self._logits(output).float(), wanted.tokens, reduction="none")
        return (each * wanted.weights).sum()

    @torch.no_grad()
    def token_figures(self, rows: Rows, targets: Sequence[Sequence[Target]]) -> tuple[float, int, int]:
        """(summed loss, tokens that were the likeliest, tokens): over all targets."""
        wanted = self._wanted(rows, targets)
        output = self._outputs(wanted)
        loss, right = 0.0, 0
        for start in range(0, len(output), CHUNK):
            part = slice(start, start + CHUNK)
            logits, tokens = self._logits(output[part]).float(), wanted.tokens[part]
            each = nn.functional.cross_entropy(logits, tokens, reduction="none")
            loss += float((each * wanted.weights[part]).sum())
            right += int(((logits.argmax(-1) == tokens) * wanted.counts[part]).sum())
        return loss, right, int(wanted.counts.sum())

    def label_logits(self, rows: Rows) -> Tensor:
        """``[rows, labels]`` float32.

        A decoder's head reads the last token of each row, as serving does: transformers looks for it by the padding
        id, and finds another where a row ends in the token that also pads.
        """
        with self._precision():
            if not self.levers.loss_rows and not self._causal:
                return self.model(**self._padded(rows), **self._no_cache()).logits.float()  # type: ignore[no-any-return]
            laid = self._lay(rows)
            places = [laid.place(row, len(ids) - 1 if self._causal else 0) for row, ids in enumerate(rows)]
            hidden = self._hidden(laid, torch.tensor(places, device=self.device))
            ids = torch.zeros(len(rows), 1, dtype=torch.long, device=self.device)
            logits: Tensor = self._classifier(input_ids=ids, inputs_embeds=hidden[:, None]).logits  # type: ignore[misc]
            return logits.float()

    def _wanted(self, rows: Rows, targets: Sequence[Sequence[Target]]) -> "_Wanted":
        """Where a token is predicted. What several rows learn from the beginning they share is one entry."""
        if self._causal and self.levers.loss_rows:
            rows = [_needed(row, of_row) for row, of_row in zip(rows, targets, strict=True)]
        laid = self._lay(rows)
        found: dict[tuple[int, int], list[float]] = {}
        for row, of_row in enumerate(targets):
            for target in of_row:
                entry = found.setdefault((laid.place(row, target.position), target.token), [0.0, 0.0])
                entry[0] += target.weight
                entry[1] += 1
        device = self.device
        return _Wanted(
            laid,
            torch.tensor([place for place, _ in found], dtype=torch.long, device=device),
            torch.tensor([token for _, token in found], dtype=torch.long, device=device),
            torch.tensor([weight for weight, _ in found.values()], device=device),
            torch.tensor([count for _, count in found.values()], device=device),
        )

    def _outputs(self, wanted: "_Wanted") -> Tensor:
        """``[n, hidden]`` for everything that is wanted; without ``loss_rows`` its logits ``[n, vocabulary]``."""
        with self._precision():
            if self.levers.loss_rows:
                return self._hidden(wanted.laid, wanted.places)
            with self._attending(wanted.laid.layout):
                logits: Tensor = self.model(**wanted.laid.inputs, **self._no_cache()).logits
            return logits.flatten(0, 1).index_select(0, wanted.places)

    def _logits(self, output: Tensor) -> Tensor:
        """Logits of what ``_outputs`` gave."""
        if not self.levers.loss_rows:
            return output
        with self._precision():
            if self._output is not None:
                return self._output.product(output, self._output_dtype)
            logits: Tensor = self._head(output)  # type: ignore[misc]
            return logits

    def _hidden(self, laid: "_Laid", places: Tensor) -> Tensor:
        """``[n, hidden]``: final hidden states at ``places``."""
        narrows = self.levers.narrow and laid.layout is not None
        with self._attending(laid.layout), reading(torch.unique(places) if narrows else None):
            output = self._backbone(**laid.inputs, **self._no_cache())
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1).index_select(0, places)

    def _lay(self, rows: Rows) -> "_Laid":
        if not self.levers.packing:
            padded = self._padded(rows)
            return _Laid(padded, None, padded["input_ids"].shape[1])
        packed = pack(
            rows,
            causal=self._causal,
            share=self.levers.share_prefix,
            device=self.device,
            first_position=self._first_position,
        )
        return _Laid({"input_ids": packed.input_ids, "position_ids": packed.position_ids}, packed.layout, 0)

    def _padded(self, rows: Rows) -> dict[str, Tensor]:
        width = max(len(row) for row in rows)
        ids = [[*row, *[self._pad_id] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return {
            "input_ids": torch.tensor(ids, device=self.device),
            "attention_mask": torch.tensor(mask, device=self.device),
        }

    @contextmanager
    def _attending(self, layout: Layout | None) -> Iterator[None]:
        """Packed rows attend as their layout says, padded ones as the model does."""
        if layout is None:
            yield
            return
        config = self._task_model.config
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            with attending(layout, compiled=self.levers.compiled):
                yield
        finally:
            config._attn_implementation = before

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self._causal else {}

    def _precision(self) -> AbstractContextManager[Any]:
        """Fused linears round by themselves; what is trained whole is rounded by torch, in each step."""
        if self.dtype == torch.float32 or (self.levers.fused and not self._trains_base):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _install(self) -> None:
        if self.levers.narrow and self.levers.packing and self.levers.loss_rows:
            narrowed = narrow_last(self._backbone)
            self._patched += [narrowed.layer] if narrowed is not None else []
        if self.levers.fused:
            self._fuse()
        if self._head is not None and _is_frozen_linear(self._head):
            self._output = FrozenWeight(self._head, self._packs)

    @property
    def _output_dtype(self) -> torch.dtype:
        """Of the products with an output layer that is not trained."""
        return self.dtype if self.levers.fused else torch.float32

    def _fuse(self) -> None:
        copies = self.packs or {self.dtype, self._coarse} != {torch.float32}
        inside = set()
        for module in self._backbone.modules():
            if hasattr(module, "lora_A") and _is_frozen_linear(module.get_base_layer()):
                inside |= set(module.modules())
                self._patch(module, FastLora(module, self._arithmetic, self._packs, compiled=self.levers.compiled))
        for module in self._backbone.modules():
            if module not in inside and copies and _is_frozen_linear(module):
                self._patch(module, FastFrozen(module, self._arithmetic, self._packs))
            elif type(module) is nn.Dropout and module not in inside:
                self._patch(module, FastDropout(module, compiled=self.levers.compiled))
            elif (activation := self._activation(module)) is not None:
                self._patch(module, activation.forward)

    def _activation(self, module: nn.Module) -> nn.Module | None:
        rounds = self.device.type == "cpu" and torch.bfloat16 in {self.dtype, self._coarse}
        native = native_activation(module) if rounds and self.levers.compiled else None
        return fused_activation(module) if native is None else native

    def _patch(self, module: nn.Module, forward: Any) -> None:
        module.forward = forward
        self._patched.append(module)


@dataclass(frozen=True, slots=True)
class _Laid:
    """A batch as the model gets it: packed by ``layout``, or padded to ``width``."""

    inputs: dict[str, Tensor]
    layout: Layout | None
    width: int

    def place(self, row: int, position: int) -> int:
        """Where a token stands when the batch is laid end to end."""
        return row * self.width + position if self.layout is None else self.layout.place(row, position)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which tokens are predicted where.

    Shapes:
        places, tokens, weights, counts: ``[n]``; ``counts`` is how many targets an entry stands for
    """

    laid: _Laid
    places: Tensor
    tokens: Tensor
    weights: Tensor
    counts: Tensor


def _head_only(classifier: Any, backbone: Any) -> Any:
    """The same classifier over hidden states that are there already; the same parameters."""
    head = copy(classifier)
    stub = BackboneStub(getattr(backbone, "pooler", None))
    head._modules = {**classifier._modules, classifier.base_model_prefix: stub}
    return head


def _needed(row: Sequence[int], targets: Sequence[Target]) -> Sequence[int]:
    """A row without what follows its last target: nothing that is read sees that."""
    return row[: max((target.position for target in targets), default=len(row)) + 1]


def _generates(model: Any) -> bool:
    return model.get_output_embeddings() is not None


def _is_encoder(config: Any) -> bool:
    return config.model_type in ENCODERS


def _is_linear(module: Any) -> bool:
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def _is_frozen_linear(module: Any) -> bool:
    return _is_linear(module) and not any(parameter.requires_grad for parameter in module.parameters())
