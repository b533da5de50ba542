"""Holds a freshly loaded base against the untouched model, before anybody is served.

An architecture may attend, embed positions or call its modules in a way that nobody thought of. Better it does not
start than that it answers wrongly, or that the first request finds out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adapters.errors import BaseModelError
from service.engine.batch import Batch, BatchBuilder
from service.engine.kv_cache import Cache
from service.engine.loader import LoadedBase
from service.engine.runner import Runner
from service.engine.sampling import SamplingParams
from service.engine.scheduler import Work
from service.engine.sequence import Sequence

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the largest value: rounding differs between kernels, a wrong computation differs by far more."""
TOLERANCE_INT8 = 0.25
"""The same with weights in int8: five times what sound bases show. One that does not bear it is not served so."""


def check_base(base: LoadedBase, runner: Runner, builder: BatchBuilder, cache: Cache | None) -> None:
    """Compute the base's probe through the engine: a prompt and a decode step, or a text.

    Raises:
        BaseModelError: it cannot be computed, or comes out otherwise than the untouched model has it.
    """
    name = type(base.model).__name__
    try:
        found = _text(base, runner, builder) if cache is None else _answer(base, runner, builder, cache)
    except Exception as error:
        raise BaseModelError(f"base {base.source.id!r}: {name} cannot be served: {error}") from error
    expected = base.probe.expected
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if base.int8 and not difference <= TOLERANCE_INT8:
        raise BaseModelError(
            f"base {base.source.id!r}: {name} computes otherwise with its weights in int8 (by {difference:.1%}), so it "
            "is not served like that; leave --quantize out"
        )
    if not base.int8 and not difference <= TOLERANCE[base.model.dtype]:
        raise BaseModelError(
            f"base {base.source.id!r}: {name} computes otherwise in a shared batch than alone (by {difference:.1%}), "
            "so it is not served"
        )


@contextmanager
def trial_prompt(base: LoadedBase, builder: BatchBuilder, cache: Cache | None) -> Iterator[Batch]:
    """A batch of the base's probe, as a prompt with a cache row or as a text."""
    sequence = Sequence("self-check", base.probe.ids, sampling=SamplingParams() if cache is not None else None)
    if cache is not None:
        sequence.row = _row(cache, sequence)
    try:
        yield builder.build([Work(sequence, len(sequence.tokens))])
    finally:
        if cache is not None and sequence.row is not None:
            cache.release(sequence.row, scrub=len(sequence.tokens))


def _answer(base: LoadedBase, runner: Runner, builder: BatchBuilder, cache: Cache) -> Tensor:
    *prompt, last = base.probe.ids
    sequence = Sequence("self-check", prompt, sampling=SamplingParams())
    sequence.row = _row(cache, sequence)
    try:
        runner.forward(builder.build([Work(sequence, len(prompt))]))
        sequence.computed = len(prompt)
        sequence.tokens.append(last)
        logits, _ = runner.forward(builder.build([Work(sequence, 1)]))
    finally:
        cache.release(sequence.row, scrub=len(sequence.tokens))
    assert logits is not None
    return logits[0].float()


def _row(cache: Cache, sequence: Sequence) -> int:
    allocation = cache.allocate(sequence.wanted, most=0)
    assert allocation is not None
    return allocation.row


def _text(base: LoadedBase, runner: Runner, builder: BatchBuilder) -> Tensor:
    work = Work(Sequence("self-check", base.probe.ids), len(base.probe.ids))
    _, hidden = runner.forward(builder.build([work]))
    return hidden[0].float()
