"""The checks of a gate, run on the engine beside everybody's requests."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from adapters.adapter import Adapter, load_adapter
from adapters.base import BaseSource
from adapters.cache import HostCache
from adapters.database.database import now
from adapters.errors import AdapterError
from adapters.store import Version
from service.asides import Asides, Outcome
from service.encode import Encoder
from service.engine.sampling import SamplingParams
from service.errors import DeadlineExceededError, ServiceError
from service.gate.rules import GateRules
from service.gate.verdict import Finding, Verdict
from service.messages import Classify, Generate, InstructPrompt, Prompt, Score, ScoredAnswer, TokenPrompt, Work

PROBE_TOKENS = 16
TEXTS = ("It works well, and I would choose it again.", "The parcel came late, and half of it was missing.")
"""What an adapter without golden rows is asked, where it does not say itself what it is for."""
CHANGE = 1e-2
"""Log-probabilities of one token under two models that are the same differ by less, whatever shares their batch."""
TURNS = 5


class NotPassedError(Exception):
    """A check that did not pass; the message says why."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is checked."""

    version: Version
    adapter: Adapter
    """As it is served."""


class Checker:
    """Runs checks; any thread but the step thread may ask.

    Args:
        base: What versions belong to.
        cache: Reads versions as serving does.
        encoder: Renders and tokenises as serving does.
        asides: Runs sequences on the engine.
    """

    def __init__(self, base: BaseSource, cache: HostCache, encoder: Encoder, asides: Asides) -> None:
        self._base = base
        self._cache = cache
        self._encoder = encoder
        self._asides = asides

    def check(self, version: Version, alias: str, rules: GateRules, current: Version | None) -> Verdict:
        """Check a version for an alias that points at ``current``.

        Every check is made, also after one that failed; but what does not load cannot be asked anything.
        """
        run = _Run(self._encoder, self._asides, rules, version.name.tenant, time.monotonic() + rules.timeout)
        try:
            # Read anew: what is in memory may be older than a damage on the disk.
            read = load_adapter(version.path, self._base, digest=version.digest, ref=str(version.name))
            subject = _Subject(version, self._cache.get(version))
        except AdapterError as error:
            findings = [Finding("loads", False, error.message)]
        else:
            loads = Finding("loads", True, f"rank {read.weights.max_rank}, {read.nbytes} bytes")
            findings = [loads, *run.findings(subject, self._read(current, version), changes=_changes(read))]
        return Verdict(version.digest, alias, now(), tuple(findings))

    def _read(self, current: Version | None, version: Version) -> _Subject | None:
        """What to compare with; None if it is the very same, or cannot be read any more."""
        if current is None or current.digest == version.digest:
            return None
        try:
            return _Subject(current, self._cache.get(current))
        except AdapterError:
            return None


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of all checks."""

    encoder: Encoder
    asides: Asides
    rules: GateRules
    tenant: str
    """Who takes turns with the others for it, and pays."""
    deadline: float

    def findings(self, subject: _Subject, current: _Subject | None, *, changes: bool) -> Iterator[Finding]:
        """What came of each check that the rules ask for; ``changes`` says that some matrix is not zero."""
        rules = self.rules
        checks: list[tuple[str, bool, Callable[[_Subject], str]]] = [
            ("finite", True, self._finite),
            ("differs", rules.differs, partial(self._differs, changes)),
        ]
        if subject.version.manifest.task == "generate":
            checks += [("stops", rules.stops_within is not None, self._stops)]
            checks += [("prompts", bool(rules.prompts), self._prompts)]
        checks += [("golden_set", rules.golden_set is not None, self._golden_set)]
        for name, wanted, check in checks:
            if wanted:
                yield _finding(name, partial(check, subject))
        if rules.latency_ratio is not None:
            yield _finding("latency", partial(self._latency, subject, current))

    # The checks: each returns what there is to say, or raises NotPassedError.

    def _finite(self, subject: _Subject) -> str:
        outcomes = self._probe(subject)
        return f"{len(outcomes)} probes computed without NaN"

    def _differs(self, changes: bool, subject: _Subject) -> str:
        if subject.version.manifest.task != "generate":
            return "it has a head of its own"
        if not changes:
            raise NotPassedError("its matrices are zero: it says what the base says")
        prompts = [TokenPrompt(tuple(ids)) for ids in self._prompt_ids(subject)]
        own, base = self._run(subject, self._writing(prompts)), self._run(None, self._writing(prompts))
        distance = max(_distance(ours, theirs) for ours, theirs in zip(own, base, strict=True))
        if distance < CHANGE:
            raise NotPassedError("its answers to the probes are the base's own")
        return f"log-probabilities differ from the base's by up to {distance:.3g}"

    def _stops(self, subject: _Subject) -> str:
        within = self.rules.stops_within or PROBE_TOKENS
        outcomes = self._run(subject, self._writing(self._probes(subject), within))
        endless = sum(outcome.reason != "stop" for outcome in outcomes)
        if endless:
            raise NotPassedError(f"{endless} of {len(outcomes)} answers do not end within {within} tokens")
        longest = max(len(outcome.token_ids) for outcome in outcomes)
        return f"all {len(outcomes)} answers end, after {longest} tokens at most"

    def _prompts(self, subject: _Subject) -> str:
        prompts = self.rules.prompts
        for number, (prompt, ids) in enumerate(zip(prompts, self._prompt_ids(subject), strict=True)):
            if prompt.prompt_ids is not None and list(ids) != prompt.prompt_ids:
                where = _first_difference(ids, prompt.prompt_ids)
                raise NotPassedError(f"prompts[{number}] is rendered to other token ids: {where}")
        longest = max((len(prompt.answer_ids or ()) for prompt in prompts), default=0)
        if longest:
            outcomes = self._run(subject, self._writing(self._probes(subject), longest))
            for number, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
                wanted = prompt.answer_ids or []
                if outcome.token_ids[: len(wanted)] != wanted:
                    where = _first_difference(outcome.token_ids[: len(wanted)], wanted)
                    raise NotPassedError(f"prompts[{number}] is answered with other token ids: {where}")
        return f"{len(prompts)} golden prompts agree"

    def _golden_set(self, subject: _Subject) -> str:
        golden = self.rules.golden_set
        assert golden is not None
        manifest = subject.version.manifest
        if manifest.task == "score":
            raise NotPassedError("a reward model has no right answers: leave out golden_set")
        if manifest.task == "classify":
            labels = manifest.labels or ()
            unknown = sorted({row.expected for row in golden.rows} - set(labels))
            if unknown:
                raise NotPassedError(f"'{unknown[0]}' is none of its labels ({', '.join(labels)})")
            outcomes = self._run(subject, self._classifying([row.text for row in golden.rows]))
            found = [labels[_largest(outcome.values or ())] for outcome in outcomes]
            metric = "accuracy"
        else:
            prompts = [InstructPrompt(row.text, row.input) for row in golden.rows]
            outcomes = self._run(subject, self._writing(prompts, self._longest_answer()))
            found = [outcome.text.strip() for outcome in outcomes]
            metric = "exact match"
        right = sum(got == row.expected.strip() for got, row in zip(found, golden.rows, strict=True))
        part = right / len(golden.rows)
        told = f"{metric} {part:.3f} on {len(golden.rows)} rows, at least {golden.at_least:g} is asked"
        if part < golden.at_least:
            raise NotPassedError(told)
        return told

    def _latency(self, subject: _Subject, current: _Subject | None) -> str:
        ratio = self.rules.latency_ratio
        assert ratio is not None
        if current is None:
            return "there is nothing to compare with"
        took: dict[str, list[float]] = {}
        for turn in range(TURNS + 1):
            for one in (subject, current):
                outcomes = self._probe(one)
                if turn:  # the first warms up
                    took.setdefault(one.version.digest, []).append(max(outcome.seconds for outcome in outcomes))
        mine, theirs = (statistics.median(took[one.version.digest]) for one in (subject, current))
        told = f"{mine * 1e3:.1f} ms, {mine / theirs:.2f} times what the present one takes; at most {ratio:g} is asked"
        if mine > ratio * theirs:
            raise NotPassedError(told)
        return told

    # What the checks ask

    def _probe(self, subject: _Subject) -> list[Outcome]:
        task = subject.version.manifest.task
        if task == "generate":
            return self._run(subject, self._writing(self._probes(subject)))
        return self._run(subject, self._classifying(TEXTS) if task == "classify" else self._scoring())

    def _probes(self, subject: _Subject) -> list[Prompt]:
        """The golden prompts; without any, the instruction that the adapter itself was checked with."""
        if self.rules.prompts:
            return [InstructPrompt(prompt.instruction, prompt.input) for prompt in self.rules.prompts]
        prompt = subject.version.manifest.prompt
        if prompt is None:
            return [InstructPrompt(text, "") for text in TEXTS]
        return [InstructPrompt(prompt.golden.instruction, prompt.golden.input)]

    def _prompt_ids(self, subject: _Subject) -> list[list[int]]:
        work = self._writing(self._probes(subject), 1)
        made = self.encoder.sequences("ids", work, subject.version, subject.adapter)
        return [sequence.tokens for sequence in made]

    def _writing(self, prompts: Sequence[Prompt], tokens: int = PROBE_TOKENS) -> Work:
        sampling = SamplingParams(temperature=0.0, logprobs=0)
        # As the default, so that it is cut to what the context leaves.
        return Generate(self.tenant, "", tuple(prompts), 1, sampling, None, tokens, self.deadline, stream=False)

    def _classifying(self, texts: Sequence[str]) -> Work:
        return Classify(self.tenant, "", tuple(texts), self.deadline)

    def _scoring(self) -> Work:
        items = tuple(ScoredAnswer(InstructPrompt(TEXTS[0], ""), text, "probe") for text in TEXTS)
        return Score(self.tenant, "", items, self.deadline)

    def _longest_answer(self) -> int:
        return self.rules.stops_within or 256

    def _run(self, subject: _Subject | None, work: Work) -> list[Outcome]:
        version, adapter = (subject.version, subject.adapter) if subject is not None else (None, None)
        outcomes = self.asides.run(
            lambda request_id: self.encoder.sequences(request_id, work, version, adapter),
            within=max(0.0, self.deadline - time.monotonic()),
        )
        if failure := next((outcome.failure for outcome in outcomes if outcome.failure), None):
            if time.monotonic() >= self.deadline:
                raise DeadlineExceededError(failure)
            raise NotPassedError(failure)
        return outcomes


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except NotPassedError as error:
        return Finding(name, False, str(error))
    except DeadlineExceededError:
        return Finding(name, False, "the time for all checks was up (timeout)")
    except ServiceError as error:  # a prompt that does not fit the context, say
        return Finding(name, False, error.message)


def _changes(adapter: Adapter) -> bool:
    """Whether an adapter changes any linear: B is zero at the start of a training."""
    return any(bool(pair.b.any()) and bool(pair.a.any()) for pair in adapter.weights.pairs.values())


def _distance(ours: Outcome, theirs: Outcome) -> float:
    """How far two answers to one prompt are apart: where tokens differ, infinitely."""
    if ours.token_ids != theirs.token_ids:
        return float("inf")
    return max((abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)), default=0.0)


def _first_difference(found: Sequence[int], wanted: Sequence[int]) -> str:
    pairs = enumerate(zip_longest(found, wanted))
    place, (ours, theirs) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    shown = ["nothing" if token is None else str(token) for token in (ours, theirs)]
    return f"at {place} there is {shown[0]} where {shown[1]} is asked for"


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
