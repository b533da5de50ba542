"""Chooses the next token of each sampled row."""

import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence

MIN_TEMPERATURE = 1e-4
"""Below it sampling is greedy in float32 anyway."""
LARGEST = 1e30
"""Penalised logits stay within this, so that nothing after them overflows."""


def greedy(logits: Tensor) -> list[int | None]:
    """The likeliest token of each row of ``[n, vocabulary]``; None for a row with values that are not finite."""
    most, best = logits.max(-1)
    finite = most.isfinite() & logits.amin(-1).isfinite()  # a NaN anywhere is the maximum
    return [token if good else None for token, good in zip(best.tolist(), finite.tolist(), strict=True)]


class Sampler:
    """Samples rows of logits, each under its own sequence's parameters and its own random stream."""

    def __init__(self, device: torch.device, argmax: Callable[[Tensor], list[int | None]] = greedy) -> None:
        self._device = device
        self._argmax = argmax
        self._streams: dict[tuple[str, int], torch.Generator] = {}

    def sample(self, logits: Tensor, sequences: Rows[Sequence]) -> list[int | None]:
        """The next token of every row; None for a row with values that are not finite.

        Shapes:
            logits: ``[n, vocabulary]``
        """
        tokens = self._argmax(logits)
        for i, sequence in enumerate(sequences):
            if tokens[i] is not None and not (sequence.params.greedy and not sequence.params.penalised):
                tokens[i] = self._sample_row(logits[i].float(), sequence)
        return tokens

    def forget(self, sequence: Sequence) -> None:
        """Drop a finished sequence's random stream."""
        self._streams.pop(sequence.key, None)

    @property
    def streams(self) -> int:
        """Random streams held; one per running sequence that samples."""
        return len(self._streams)

    def _sample_row(self, logits: Tensor, sequence: Sequence) -> int:
        params = sequence.params
        if params.penalised:
            logits = _penalise(logits, sequence)
        if params.greedy:
            return int(logits.argmax())
        # From the likeliest down, so that no temperature, however small, overflows.
        scaled = (logits - logits.max()) / max(params.temperature, MIN_TEMPERATURE)
        kept = restrict(scaled, params)
        return int(torch.multinomial(kept.softmax(-1), 1, generator=self._stream(sequence)))

    def _stream(self, sequence: Sequence) -> torch.Generator:
        if sequence.key not in self._streams:
            generator = torch.Generator(self._device)
            if sequence.params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sequence.params.seed % 2**63)
            self._streams[sequence.key] = generator
        return self._streams[sequence.key]


def _penalise(logits: Tensor, sequence: Sequence) -> Tensor:
    """``[vocabulary] -> [vocabulary]`` with the sequence's penalties applied."""
    params, logits = sequence.params, logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=logits.device)
        scores = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(scores > 0, scores / penalty, scores * penalty).clamp(-LARGEST, LARGEST)
    if sequence.completion and (params.presence_penalty or params.frequency_penalty):
        counted = Counter(sequence.completion)
        used = torch.tensor(list(counted), device=logits.device)
        counts = torch.tensor(list(counted.values()), device=logits.device)
        logits[used] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def restrict(logits: Tensor, params: SamplingParams) -> Tensor:
    """Set the logits of tokens outside min-p, top-k and top-p to minus infinity.

    Shapes:
        logits: ``[vocabulary]``, the temperature applied

    Ties at the border of top-k are all kept; the likeliest token always is.
    """
    if params.min_p > 0.0:
        logits = logits.masked_fill(logits < logits.max() + math.log(params.min_p), -torch.inf)
    if 0 < params.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
    if params.top_p < 1.0:
        ranked, order = logits.sort(descending=True)
        probabilities = ranked.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= params.top_p
        beyond[0] = False  # a top-p too small for float32 would drop even this one
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    return logits
