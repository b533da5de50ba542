"""Lays a plan out as one flattened row of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.attention import AttentionBackend, AttentionBatch, Span
from service.engine.kv_cache import KVCache
from service.engine.lora import LoraBatch
from service.engine.scheduler import Work
from service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Texts of one adapter to classify, and the token whose hidden state stands for each.

    Shapes:
        pooled: ``[n]`` places in the batch
    """

    slot: int
    sequences: tuple[Sequence, ...]
    pooled: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one forward pass needs.

    Shapes:
        input_ids, position_ids: ``[1, t]``, ordered by adapter slot
        sampled_tokens: ``[n]`` places of the tokens whose logits are wanted
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: AttentionBatch
    lora: LoraBatch
    sampled: tuple[Sequence, ...]
    sampled_tokens: Tensor
    sampled_lora: LoraBatch
    texts: tuple[TextGroup, ...]


class BatchBuilder:
    """Builds batches for one base model.

    Args:
        causal: Whether tokens see only what came before them.
        pool_last: Whether a text's last token stands for it (decoders) rather than its first (encoders).
        position_offset: Position id of a text's first token.
    """

    def __init__(
        self,
        *,
        cache: KVCache | None,
        attention: AttentionBackend,
        causal: bool,
        pool_last: bool,
        position_offset: int,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._attention = attention
        self._causal = causal
        self._pool_last = pool_last
        self._position_offset = position_offset
        self._device = device

    def build(self, work: Iterable[Work]) -> Batch:
        """Lay out the work of a step, which is ordered by slot."""
        layout = _Layout()
        for item in work:
            layout.add(item.sequence, item.tokens)
        positions = [position + self._position_offset for position in layout.positions]
        return Batch(
            input_ids=self._tensor(layout.token_ids)[None],
            position_ids=self._tensor(positions)[None],
            attention=AttentionBatch(
                layout.spans, causal=self._causal, cache=self._cache, backend=self._attention, device=self._device
            ),
            lora=LoraBatch(layout.slots, self._device),
            sampled=tuple(layout.sampled),
            sampled_tokens=self._tensor(layout.sampled_tokens),
            sampled_lora=LoraBatch([sequence.slot for sequence in layout.sampled], self._device),
            texts=tuple(self._text_groups(layout)),
        )

    def _text_groups(self, layout: "_Layout") -> Iterable[TextGroup]:
        for slot, texts in layout.texts.items():
            pooled = [span.stop - 1 if self._pool_last else span.start for _, span in texts]
            yield TextGroup(slot, tuple(sequence for sequence, _ in texts), self._tensor(pooled))

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


class _Layout:
    """The growing lists of a batch."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.spans: list[Span] = []
        self.sampled: list[Sequence] = []
        self.sampled_tokens: list[int] = []
        self.texts: dict[int, list[tuple[Sequence, Span]]] = {}

    def add(self, sequence: Sequence, tokens: int) -> None:
        start, first = len(self.token_ids), sequence.computed
        stop, last = start + tokens, first + tokens
        span = Span(start, stop, sequence.row, first)
        self.token_ids += sequence.tokens[first:last]
        self.positions += range(first, last)
        self.slots += [sequence.slot] * tokens
        self.spans.append(span)
        if sequence.classifies:
            self.texts.setdefault(sequence.slot, []).append((sequence, span))
            return
        assert sequence.row is not None, f"{sequence} runs without a cache row"
        if last == len(sequence.tokens):
            self.sampled.append(sequence)
            self.sampled_tokens.append(stop - 1)
