"""A language model as the judge of answers, at any server that speaks OpenAI's chat completions.

`score` asks for each answer alone, as "Build a Large Language Model (From Scratch)" does in chapter 7; `compare` asks
which of two answers is better, in both orders, for judges prefer a place. What a judge does not answer, or answers
with something else, is counted and named.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event
from time import time
from typing import Any, Generic, Literal, TypeVar

import httpx
from rich.console import Console
from rich.progress import Progress
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
)

from training.errors import TrainingError
from training.evaluation.questions import Choice, compare_question, read_choice, read_score, score_question
from training.reporting.results import Comparison, Evaluation, Judgement, Sample

KEY_VARIABLE = "TENORA_JUDGE_KEY"

_PASSING_STATUSES = (408, 409, 425, 429)  # and 500 and above
_LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After says
_FAILURES_IN_A_ROW = 8  # then the judge is taken for gone, or the rest of a run would wait for it
_PROBLEMS_NAMED = 5
_REPLY_SHOWN = 80  # characters
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)

_Value = TypeVar("_Value")


class JudgeError(TrainingError):
    """The judge cannot be reached, refuses the key or the model, or does not answer with numbers."""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[_Value]):
    """What came of one question: a value, or the problem. ``failed`` means that there was no reply at all."""

    value: _Value | None = None
    problem: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Judge:
    """A model behind an OpenAI-compatible URL.

    Args:
        url: where the API begins, as OpenAI's clients want it: http://localhost:8000/v1.
        model: the judge's name at that server.
        key: API key; else that of the environment variable TENORA_JUDGE_KEY, else none is sent.
        at_once: requests in flight.
        timeout: seconds to wait for a reply.
        attempts: how often a question is asked that meets a lost connection, a timeout, 429 or 5xx.
        pause: seconds before the second attempt, doubled for each one after; Retry-After goes before it.
        options: what is sent beside the model and the messages; some models refuse one of these.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    at_once: int = 4
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})

    def __post_init__(self) -> None:
        try:
            usable = httpx.URL(self.url).scheme in ("http", "https") and httpx.URL(self.url).host
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise JudgeError(f"the judge's URL {self.url!r} is none: write it as http://localhost:8000/v1")

    def check(self) -> None:
        """Ask one easy question, so that a run does not train for hours and then find no judge.

        Raises:
            JudgeError: with what to change.
        """
        question = score_question(Sample(prompt="Name the capital of France.", answer="Paris.", expected="Paris."))
        with self._client() as client:
            try:
                reply = self._reply(client, question, Event())
            except httpx.HTTPStatusError as error:
                raise JudgeError(self._refusal(error.response)) from None
            except httpx.RequestError as error:
                raise JudgeError(f"the judge at {self.url} cannot be reached ({_reason(error)})") from None
            except _NoReplyError as error:
                raise JudgeError(f"the judge at {self.url} does not reply as chat completions do: {error}") from None
        if read_score(reply) is None:
            raise JudgeError(f"the judge {self.model} replies {_shown(reply)} where it is asked for an integer")

    def score(self, evaluation: Evaluation, console: Console) -> Evaluation:
        """The same evaluation with a score beside each sample, and their mean in ``judged``."""
        samples = evaluation.samples
        outcomes = self._ask([score_question(sample) for sample in samples], read_score, console, "judging answers")
        scores = [outcome.value for outcome in outcomes if outcome.value is not None]
        judgement = Judgement(
            model=self.model,
            scored=len(scores),
            mean=sum(scores) / len(scores) if scores else None,
            unparsable=sum(outcome.value is None and not outcome.failed for outcome in outcomes),
            failed=sum(outcome.failed for outcome in outcomes),
            problems=_problems(outcomes),
        )
        scored = [
            sample.model_copy(update={"score": outcome.value})
            for sample, outcome in zip(samples, outcomes, strict=True)
        ]
        return evaluation.model_copy(update={"samples": tuple(scored), "judged": judgement})

    def compare(self, before: Evaluation, after: Evaluation, console: Console) -> Comparison:
        """How often the answers after are better than those before; equal ones are ties without a question."""
        pairs = list(zip(before.samples, after.samples, strict=True))
        asked = [(old, new) for old, new in pairs if old.answer != new.answer]
        prompts = [compare_question(*order) for old, new in asked for order in ((old, new), (new, old))]
        outcomes: list[_Outcome[Choice]] = self._ask(prompts, read_choice, console, "comparing answers")
        verdicts = [_verdict(*both) for both in zip(outcomes[::2], outcomes[1::2], strict=True)]
        return Comparison(
            model=self.model,
            wins=verdicts.count("win"),
            ties=verdicts.count("tie") + len(pairs) - len(asked),
            losses=verdicts.count("loss"),
            undecided=verdicts.count(None),
            problems=_problems(outcomes),
        )

    def _client(self) -> httpx.Client:
        key = self.key or os.environ.get(KEY_VARIABLE)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=self.timeout)

    def _ask(
        self, prompts: Sequence[str], parse: Callable[[str], _Value | None], console: Console, what: str
    ) -> list[_Outcome[_Value]]:
        """The outcome of each prompt, in their order."""
        series = _Series()

        def ask(prompt: str) -> _Outcome[_Value]:
            if series.over.is_set():
                return _Outcome(problem="not asked, the judge had stopped replying", failed=True)
            try:
                reply = self._reply(client, prompt, series.over)
            except (httpx.HTTPStatusError, httpx.RequestError) as error:
                series.failed()
                return _Outcome(problem=_reason(error), failed=True)
            except _NoReplyError as error:
                return _Outcome(problem=str(error))
            series.answered()
            value = parse(reply)
            return _Outcome(value, "" if value is not None else f"the reply {_shown(reply)}")

        with self._client() as client, _pool(self.at_once, series.over) as pool, _bar(console) as bar:
            return list(bar.track(pool.map(ask, prompts), total=len(prompts), description=what))

    def _reply(self, client: httpx.Client, prompt: str, over: Event) -> str:
        """The judge's words, without what it thought aloud."""
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self.attempts) | stop_when_event_set(over),
            sleep=sleep_using_event(over),
            wait=self._pause_after,
            reraise=True,
        )
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.options}
        response: httpx.Response = retrying(_post, client, body)
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _NoReplyError(f"no message in {_shown(response.text)}") from None
        if not isinstance(content, str):
            raise _NoReplyError(f"a message without text in {_shown(response.text)}")
        return _THOUGHT.sub("", content).strip()

    def _pause_after(self, state: RetryCallState) -> float:
        """Seconds until the next attempt."""
        error = state.outcome.exception() if state.outcome else None
        asked = _retry_after(error.response) if isinstance(error, httpx.HTTPStatusError) else None
        pause = self.pause * 2 ** (state.attempt_number - 1) if asked is None else asked
        return min(pause, _LONGEST_PAUSE)

    def _refusal(self, response: httpx.Response) -> str:
        """What to change, from a status."""
        mends = {
            401: f"set {KEY_VARIABLE} to a key that it accepts",
            403: f"set {KEY_VARIABLE} to a key that it accepts",
            404: f"is the model {self.model!r} there, and does the URL end as it should (often in /v1)?",
        }
        mend = mends.get(response.status_code, _shown(response.text))
        return f"the judge at {self.url} answers {response.status_code}: {mend}"


class _NoReplyError(Exception):
    """A response with status 200 that holds no reply."""


class _Series:
    """Failures in a row, and whether there is an end of asking. Threads share it; a count off by one does no harm."""

    def __init__(self) -> None:
        self.over = Event()
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW:
            self.over.set()

    def answered(self) -> None:
        self._failures = 0


@contextmanager
def _pool(threads: int, over: Event) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        over.set()  # after Ctrl-C nobody waits for attempts, nor for what has not begun
        pool.shutdown(cancel_futures=True)


def _bar(console: Console) -> Progress:
    return Progress(console=console, disable=not console.is_terminal)


def _post(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    return client.post("chat/completions", json=body).raise_for_status()


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING_STATUSES or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks for, as a number or until a time."""
    stated = response.headers.get("retry-after", "")
    if stated.isdecimal():
        return float(stated)
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time())
    except ValueError:
        return None


def _verdict(before_first: _Outcome[Choice], after_first: _Outcome[Choice]) -> Literal["win", "tie", "loss"] | None:
    both = (before_first.value, after_first.value)
    if None in both:
        return None
    return "win" if both == ("B", "A") else "loss" if both == ("A", "B") else "tie"


def _problems(outcomes: Sequence[_Outcome[Any]]) -> tuple[str, ...]:
    named = [f"question {number}: {one.problem}" for number, one in enumerate(outcomes, 1) if one.problem]
    return tuple(named[:_PROBLEMS_NAMED])


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    if isinstance(error, httpx.TimeoutException):
        return "no reply in time"
    return str(error) or type(error).__name__


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _REPLY_SHOWN else f"{flat[: _REPLY_SHOWN - 1]}…")
