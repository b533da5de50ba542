"""Runs one forward pass of the base model over a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapter import Adapter
from adapters.narrow import reading
from service.engine.attention import attending
from service.engine.batch import Batch, TextGroup
from service.engine.heads import ClassificationHeads
from service.engine.kernels import Kernels, Recorded
from service.engine.kv_cache import Cache
from service.engine.loader import LoadedBase
from service.engine.lora import LoraBank, LoraBatch


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives.

    Shapes:
        logits: ``[n, vocabulary]``, a row for each of the batch's sampled tokens; None without any
        label_logits: per text group ``[texts, labels]`` float32
    """

    logits: Tensor | None
    label_logits: tuple[Tensor, ...]


class Runner:
    """The base model with its adapter slots: weights in, logits out."""

    def __init__(
        self,
        base: LoadedBase,
        kernels: Kernels,
        *,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._base = base
        self._bank = LoraBank(base.linears, slots=slots, pack=kernels.pack)
        self._heads = ClassificationHeads(base.model.config, base.backbone, dtype, device)
        self._hidden: Tensor | None = None
        self._graphs: Recorded | None = None
        # OPT's language model calls its decoder past its backbone, so the decoder is where all passes meet.
        innermost = base.model.get_decoder() if base.generates else base.backbone
        innermost.register_forward_hook(self._keep_hidden)

    @property
    def loads(self) -> int:
        """Adapters copied into slots so far."""
        return self._bank.loads

    def pack(self, adapter: Adapter) -> Adapter:
        """Lay an adapter's matrices out as the slots want them; may be called from any thread."""
        return replace(adapter, weights=replace(adapter.weights, pairs=dict(self._bank.pack(adapter.weights.pairs))))

    def load(self, slot: int, adapter: Adapter) -> None:
        """Copy an adapter, head included, into a slot."""
        self._bank.load(slot, adapter.weights.pairs)
        self._heads.load(slot, adapter.weights.head, adapter.weights.num_labels or 0)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Output:
        """Compute a batch: one pass of the base, then each adapter's head over its own texts."""
        logits, hidden = self.forward(batch)
        return Output(logits, tuple(self._label_logits(hidden, group) for group in batch.texts))

    def record(self, kernels: Kernels, cache: Cache | None, largest: int) -> None:
        """Have decode steps of up to ``largest`` rows recorded as graphs, where that can be."""
        self._graphs = kernels.record(self._base, self._eager, cache, largest=largest)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """One pass of the base: the sampled tokens' logits, and the tokens' final hidden states ``[t, hidden]``.

        Of an encoder's tokens only those that stand for a text have one; the others' are zero.
        """
        recorded = self._graphs.forward(batch) if self._graphs is not None else None
        return recorded or self._eager(batch)

    def _eager(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        base = self._base
        with (
            attending(batch.attention),
            base.tokens.of(batch.lora),
            base.sampled.of(batch.sampled_lora),
            nullcontext() if base.generates else self._reading(batch.texts),
        ):
            logits = self._forward(batch)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return logits, hidden[0]

    @contextmanager
    def _reading(self, texts: Sequence[TextGroup]) -> Iterator[None]:
        """Have an encoder's last layer end with the tokens that stand for a text."""
        tokens = torch.cat([group.pooled for group in texts])
        slots = [group.slot for group in texts for _ in group.sequences]
        with reading(tokens), self._base.read.of(LoraBatch(slots, tokens.device)):
            yield

    def _forward(self, batch: Batch) -> Tensor | None:
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if not batch.sampled:
            self._base.backbone(**inputs, **self._no_cache())
            return None
        output = self._base.model(**inputs, **self._no_cache(), logits_to_keep=batch.sampled_tokens)
        logits: Tensor = output.logits[0]
        return logits

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self._base.generates else {}

    def _label_logits(self, hidden: Tensor, group: TextGroup) -> Tensor:
        # A head may go through a linear of the base (BERT's pooler): its rows all belong to this adapter.
        with self._base.pooled.of(LoraBatch([group.slot] * len(group.sequences), hidden.device)):
            return self._heads.logits(group.slot, hidden[group.pooled])

    def _keep_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state
