"""The engine: sequences in, events out, one step at a time.

engine = Engine(resolve_base("embedded"), EngineConfig())
engine.submit(Sequence("r1", prompt_ids, adapter=adapter, sampling=SamplingParams(max_tokens=8)))
while engine.has_work():
    for event in engine.step():
        ...
"""

import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from adapters.adapter import Adapter
from adapters.base import BaseSource
from service.engine.batch import Batch, BatchBuilder
from service.engine.config import EngineConfig, resolve_device, resolve_dtype, resolve_int8
from service.engine.detokenizer import Detokenizer
from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, FinishReason, TokenEvent
from service.engine.heads import meant
from service.engine.kernels import Kernels, choose_kernels
from service.engine.kv_cache import Cache, KVCache
from service.engine.loader import CacheShape, LoadedBase, load_base
from service.engine.logprobs import Logprobs
from service.engine.runner import Output, Runner
from service.engine.sampler import Sampler
from service.engine.scheduler import Plan, Scheduler
from service.engine.self_check import check_base, trial_prompt
from service.engine.sequence import Sequence
from service.engine.slots import SlotTable
from service.engine.stats import EngineStats

ROWS_AT_LEAST = 8
"""Sequences that should fit the KV cache before the base's whole context does."""


class Engine:
    """Generates and classifies under many adapters in the same batch.

    Every method but :meth:`weights_hash` and :meth:`pack` is called from one thread.
    """

    def __init__(self, source: BaseSource, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = resolve_device(config.device)
        dtype = resolve_dtype(config.dtype, device)
        self.config = config
        kernels = choose_kernels(
            config.kernels, dtype, device, slots=config.adapter_slots, max_rank=config.max_lora_rank
        )
        self.kernels = kernels.name
        self.base: LoadedBase = load_base(source, dtype, device, kernels, int8=resolve_int8(config.quantize, device))
        self.max_model_len = _context_length(self.base, config, dtype, kernels)
        self._clock = clock
        self._eos = _eos_ids(self.base)
        self._cache = self._make_cache(kernels)
        self._scheduler = Scheduler(
            slots=SlotTable(config.adapter_slots),
            cache=self._cache,
            max_step_tokens=config.max_step_tokens,
            give_way=device.type == "cpu",
            clock=clock,
        )
        contiguous = self._cache if isinstance(self._cache, KVCache) else None
        self._builder = BatchBuilder(
            cache=contiguous,
            attention=kernels.attention,
            causal=self.base.generates,
            pool_last=self.base.generates,
            position_offset=self.base.position_offset,
            device=device,
        )
        self._runner = Runner(self.base, kernels, slots=config.adapter_slots, dtype=dtype, device=device)
        check_base(self.base, self._runner, self._builder, self._cache)
        with trial_prompt(self.base, self._builder, self._cache) as batch:
            kernels.fuse(self.base, contiguous, batch.attention)
        check_base(self.base, self._runner, self._builder, self._cache)
        self._runner.record(kernels, self._cache, config.max_running)
        self._sampler = Sampler(device, kernels.argmax)
        self._logprobs = Logprobs(self.base.tokenizer)
        self._texts: dict[tuple[str, int], Detokenizer] = {}
        self._rejected: list[FailedEvent] = []
        self._stats = EngineStats()

    def _make_cache(self, kernels: Kernels) -> Cache | None:
        if not self.base.generates:
            return None
        config = self.config
        return kernels.cache(
            CacheShape.of(self.base),
            rows=config.max_running,
            length=self.max_model_len,
            max_bytes=config.kv_cache_bytes,
            reuse=config.prefix_reuse,
        )

    def pack(self, adapter: Adapter) -> Adapter:
        """Lay an adapter out as this engine reads it, so that loading it costs a step nothing. From any thread."""
        return self._runner.pack(adapter)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; what becomes of it is told by the events of later steps."""
        adapter = sequence.adapter
        if adapter is not None and adapter.weights.max_rank > self.config.max_lora_rank:
            self._rejected.append(
                FailedEvent(
                    *sequence.key,
                    "adapter_too_large",
                    f"adapter {adapter.ref} has rank {adapter.weights.max_rank}; this server holds ranks up to "
                    f"{self.config.max_lora_rank}",
                )
            )
            return
        if not sequence.classifies:
            assert self.base.generates, "an encoder does not generate"
            assert sequence.prompt_tokens + sequence.params.max_tokens <= self.max_model_len, "the context overflows"
        assert sequence.prompt_tokens <= self.max_model_len, "the context overflows"
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> int:
        """Drop all sequences of a request, waiting or running; return how many there were. No event follows."""
        dropped = self._scheduler.remove(lambda sequence: sequence.request_id == request_id)
        for sequence in dropped:
            self._forget(sequence)
        return len(dropped)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rejected) or self._scheduler.has_work()

    def step(self) -> list[Event]:
        """Admit, compute one batch, and tell what came of it."""
        events: list[Event] = [*self._rejected, *self._expire()]
        self._rejected.clear()
        plan = self._scheduler.schedule()
        if not plan.work:
            return events
        for admission in plan.admitted:
            if admission.load and admission.sequence.adapter is not None:
                self._runner.load(admission.sequence.slot, admission.sequence.adapter)
        batch = self._builder.build(plan.work)
        output = self._runner.run(batch)
        self._count(plan)
        for item in plan.work:
            item.sequence.computed += item.tokens
        events += self._sampled(batch, output.logits)
        events += self._classified(batch, output)
        return events

    def _expire(self) -> list[Event]:
        now = self._clock()
        expired = self._scheduler.remove(lambda sequence: sequence.deadline is not None and sequence.deadline < now)
        for sequence in expired:
            self._forget(sequence)
        return [
            FailedEvent(*sequence.key, "deadline_exceeded", "the request's deadline passed before it was finished")
            for sequence in expired
        ]

    def _sampled(self, batch: Batch, logits: Tensor | None) -> list[Event]:
        """Choose and append the next token of every sampled row."""
        if logits is None:
            return []
        tokens = self._sampler.sample(logits, batch.sampled)
        events: list[Event] = []
        for i, (sequence, token) in enumerate(zip(batch.sampled, tokens, strict=True)):
            if token is None:
                events.append(self._fail_non_finite(sequence))
            else:
                events += self._append(sequence, token, logits[i])
        return events

    def _append(self, sequence: Sequence, token: int, logits: Tensor) -> list[Event]:
        sequence.tokens.append(token)
        self._stats.generated_tokens += 1
        detokenizer = self._detokenizer(sequence)
        ended = self._ends(sequence, token)
        piece = detokenizer.append(token)
        reason = self._finish_reason(sequence, ended or piece.stopped)
        text = piece.text
        if reason is not None and not piece.stopped:
            text += detokenizer.finish()
        logprobs = None
        if (alternatives := sequence.params.logprobs) is not None:
            logprobs = (self._logprobs.of(logits.float(), token, alternatives),)
        events: list[Event] = [TokenEvent(*sequence.key, text, (token,), logprobs, self._clock())]
        if reason is not None:
            events.append(self._finished(sequence, reason, by_stop_text=piece.stopped))
            self._finish(sequence)
        return events

    def _detokenizer(self, sequence: Sequence) -> Detokenizer:
        if sequence.key not in self._texts:
            self._texts[sequence.key] = Detokenizer(self.base.tokenizer, sequence.params.stop)
        return self._texts[sequence.key]

    def _ends(self, sequence: Sequence, token: int) -> bool:
        """Whether a token ends the answer: an end token of the base, or the one that the adapter learned."""
        if sequence.params.ignore_eos:
            return False
        learned = sequence.adapter.manifest.eos if sequence.adapter is not None else None
        return token in self._eos or (learned is not None and token == learned.id)

    @staticmethod
    def _finish_reason(sequence: Sequence, stopped: bool) -> FinishReason | None:
        if stopped:
            return "stop"
        return "length" if sequence.completion_tokens >= sequence.params.max_tokens else None

    def _finished(self, sequence: Sequence, reason: FinishReason, *, by_stop_text: bool) -> FinishedEvent:
        return FinishedEvent(
            *sequence.key,
            reason=reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.reused,
            completion_tokens=sequence.completion_tokens,
            queue_s=sequence.admitted_at - sequence.arrived_at,
            tier=sequence.tier,
            by_stop_text=by_stop_text,
        )

    def _classified(self, batch: Batch, output: Output) -> list[Event]:
        events: list[Event] = []
        for group, logits in zip(batch.texts, output.label_logits, strict=True):
            adapter = group.sequences[0].adapter
            assert adapter is not None, "the base has no head"
            for sequence, values in zip(group.sequences, meant(adapter.manifest, logits), strict=True):
                if not values.isfinite().all():
                    events.append(self._fail_non_finite(sequence))
                    continue
                self._finish(sequence)
                self._stats.classified_texts += 1
                events.append(
                    ClassifiedEvent(
                        *sequence.key,
                        values=tuple(values.tolist()),
                        prompt_tokens=sequence.prompt_tokens,
                        queue_s=sequence.admitted_at - sequence.arrived_at,
                        tier=sequence.tier,
                    )
                )
        return events

    def _fail_non_finite(self, sequence: Sequence) -> FailedEvent:
        self._finish(sequence, scrub=True)
        name = sequence.adapter.ref if sequence.adapter is not None else self.base.source.id
        return FailedEvent(
            *sequence.key,
            "non_finite_logits",
            f"{name} computed NaN or infinity for this input; the adapter's weights overflow in {self.config.dtype}",
        )

    def _finish(self, sequence: Sequence, *, scrub: bool = False) -> None:
        self._scheduler.finish(sequence, scrub=scrub)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._texts.pop(sequence.key, None)
        self._sampler.forget(sequence)

    def _count(self, plan: Plan) -> None:
        stats, sequences = self._stats, [item.sequence for item in plan.work]
        adapters = len({sequence.slot for sequence in sequences if sequence.slot})
        kinds = len({sequence.classifies for sequence in sequences})
        stats.steps += 1
        stats.prompt_tokens += sum(item.tokens for item in plan.work if not item.sequence.decoding)
        stats.batch_sizes[len(sequences)] += 1
        stats.adapters_per_step[adapters] += 1
        stats.max_adapters_in_step = max(stats.max_adapters_in_step, adapters)
        stats.max_kinds_in_step = max(stats.max_kinds_in_step, kinds)
        stats.cached_tokens += sum(admission.sequence.reused for admission in plan.admitted)
        stats.tiers.update(admission.sequence.tier for admission in plan.admitted)

    def stats(self) -> EngineStats:
        """A copy of the counts as they are now."""
        snapshot, scheduler = deepcopy(self._stats), self._scheduler
        snapshot.adapter_loads = self._runner.loads
        snapshot.adapter_evictions = scheduler.slots.evictions
        snapshot.preemptions = scheduler.preemptions
        snapshot.waiting_by_tenant = scheduler.waiting_by_tenant
        snapshot.running = len(scheduler.running)
        snapshot.waiting = len(scheduler.waiting)
        snapshot.adapters_resident = scheduler.slots.occupied
        snapshot.pins = scheduler.slots.pins
        snapshot.kv_rows_total = self._cache.rows if self._cache else 0
        snapshot.kv_rows_free = self._cache.free if self._cache else 0
        snapshot.random_streams = self._sampler.streams
        return snapshot

    def weights_hash(self) -> str:
        """sha256 of the base's weights as they are in memory now. May be called from any thread."""
        return self.base.weights_hash()

    def check_integrity(self) -> None:
        """Assert that nothing leaked: KV rows, pins, texts and random streams belong to sequences that have begun."""
        self._scheduler.check_integrity()
        stopped = [sequence for sequence in self._scheduler.waiting if sequence.preempted]
        begun = {sequence.key for sequence in (*self._scheduler.running, *stopped)}
        assert set(self._texts) <= begun, "text buffers leaked"
        assert self._sampler.streams <= len(begun), "random streams leaked"


def _eos_ids(base: LoadedBase) -> frozenset[int]:
    if not base.generates:
        return frozenset()
    generation_config = base.model.generation_config
    configured = (generation_config.eos_token_id if generation_config else None, base.tokenizer.eos_token_id)
    ids: set[int] = set()
    for value in configured:
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _context_length(base: LoadedBase, config: EngineConfig, dtype: torch.dtype, kernels: Kernels) -> int:
    """The longest sequence: what was asked for, or as much of the base's context as leaves room for several."""
    if config.max_model_len is not None:
        if config.max_model_len > base.max_length:
            raise ValueError(f"max_model_len {config.max_model_len} is beyond the base's context of {base.max_length}")
        return config.max_model_len
    if not base.generates:
        return base.max_length
    rows = max(min(config.max_running, ROWS_AT_LEAST), kernels.least_rows)
    return max(1, min(base.max_length, config.kv_cache_bytes // (rows * CacheShape.of(base).token_bytes(dtype))))
