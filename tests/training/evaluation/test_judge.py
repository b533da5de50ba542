"""The judge against a real HTTP server, on good and on bad days."""

import socket
import time
from email.utils import formatdate
from io import StringIO

import pytest
from rich.console import Console

from tests.training.evaluation.judge_server import Say, judge_server
from training.errors import TrainingError
from training.evaluation.judge import KEY_VARIABLE, Judge, JudgeError
from training.evaluation.questions import read_choice, read_score
from training.reporting.results import Evaluation, Sample

QUIET = Console(file=StringIO())


def judge(url: str, **changes: object) -> Judge:
    return Judge(url, "judge-1", **{"timeout": 5.0, "pause": 0.01, **changes})  # type: ignore[arg-type]


def evaluation(*answers: str) -> Evaluation:
    samples = tuple(
        Sample(prompt=f"question {number}", answer=answer, expected=f"right {number}")
        for number, answer in enumerate(answers)
    )
    return Evaluation(part="test", rows=len(samples), metrics={}, samples=samples)


def test_scores_stand_beside_their_samples_and_have_a_mean() -> None:
    with judge_server(lambda prompt, _: Say("90" if "good" in prompt else "20")) as server:
        scored = judge(server.url).score(evaluation("good", "bad", "bad"), QUIET)
    assert [sample.score for sample in scored.samples] == [90, 20, 20]
    assert scored.judged is not None
    assert scored.judged.mean == pytest.approx(130 / 3, abs=1e-4)
    assert (scored.judged.scored, scored.judged.unparsable, scored.judged.failed) == (3, 0, 0)
    assert scored.judged.problems == ()


def test_the_question_is_the_book_s() -> None:
    with judge_server(lambda *_: Say("1")) as server:
        judge(server.url).score(evaluation("mine"), QUIET)
        [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["body"]["model"] == "judge-1"
    assert request["body"]["temperature"] == 0
    assert request["body"]["messages"] == [
        {
            "role": "user",
            "content": "Given the input `question 0` and correct output `right 0`, score the model response `mine` on "
            "a scale from 0 to 100, where 100 is the best score. Respond with the integer number only.",
        }
    ]


def test_a_sample_without_an_expected_answer_is_judged_without_one() -> None:
    free = Evaluation(part="test", rows=1, metrics={}, samples=(Sample(prompt="a {b}", answer="c"),))
    with judge_server(lambda *_: Say("1")) as server:
        judge(server.url).score(free, QUIET)
        assert server.prompts()[0].startswith("Given the input `a {b}`, score the model response `c`")


@pytest.mark.parametrize(
    ("reply", "score"),
    [("85", 85), (" 85.\n", 85), ("Score: 85/100", 85), ("85 out of 100", 85), ("0", 0), ("100", 100), ("72.5", 72.5)]
    + [(bad, None) for bad in ("", "good", "101", "-5", "8 out of 10", "between 70 and 80")],
)
def test_one_number_is_a_score_and_anything_else_is_none(reply: str, score: float | None) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "choice"),
    [("A", "A"), ("b.", "B"), ("Response B", "B"), ("**A**", "A"), ("T", "T"), ("tie", "T")]
    + [(bad, None) for bad in ("", "A or B", "Both are good", "C", "A good question")],
)
def test_one_letter_is_a_choice_and_anything_else_is_none(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


def test_what_a_reasoning_judge_thinks_aloud_does_not_count() -> None:
    with judge_server(lambda *_: Say("<think>Perhaps 40?\nNo, 60.</think>\n\n55")) as server:
        scored = judge(server.url).score(evaluation("x"), QUIET)
    assert scored.samples[0].score == 55


def test_replies_that_are_no_scores_are_counted_and_named() -> None:
    replies = {
        "one": Say("I like it"),
        "two": Say(raw="not JSON"),
        "three": Say(raw='{"choices": []}'),
        "four": Say(None),
        "five": Say(raw="[]"),
        "six": Say("80"),
    }

    def reply(prompt: str, _: int) -> Say:
        return next(say for word, say in replies.items() if f"`{word}`" in prompt)

    with judge_server(reply) as server:
        scored = judge(server.url).score(evaluation(*replies), QUIET)
    judged = scored.judged
    assert judged is not None
    assert (judged.scored, judged.unparsable, judged.failed, judged.mean) == (1, 5, 0, 80)
    assert [sample.score for sample in scored.samples] == [None] * 5 + [80]
    assert judged.problems[0] == "question 1: the reply 'I like it'"
    assert judged.problems[1] == "question 2: no message in 'not JSON'"
    assert judged.problems[3].startswith("question 4: a message without text in")
    assert len(judged.problems) == 5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form: str) -> None:
    def reply(_: str, number: int) -> Say:
        stated = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return Say(status=429, headers={"Retry-After": stated}) if number == 0 else Say("7")

    with judge_server(reply) as server:
        scored = judge(server.url).score(evaluation("x"), QUIET)
        first, second = (request["at"] for request in server.requests)
    assert scored.samples[0].score == 7
    assert second - first > 0.9  # a date is in whole seconds


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with judge_server(lambda _, number: Say(status=status) if number < 2 else Say("7")) as server:
        scored = judge(server.url).score(evaluation("x"), QUIET)
        assert len(server.requests) == 3
    assert scored.samples[0].score == 7


def test_what_does_not_pass_is_counted_and_named() -> None:
    with judge_server(lambda prompt, _: Say(status=500) if "broken" in prompt else Say("7")) as server:
        scored = judge(server.url).score(evaluation("broken", "whole"), QUIET)
        assert len(server.requests) == 4 + 1
    judged = scored.judged
    assert judged is not None
    assert (judged.scored, judged.failed, judged.mean) == (1, 1, 7)
    assert judged.problems == ("question 1: status 500",)


def test_a_refusal_is_not_asked_again() -> None:
    with judge_server(lambda *_: Say(status=400)) as server:
        scored = judge(server.url).score(evaluation("x"), QUIET)
        assert len(server.requests) == 1
    assert scored.judged is not None
    assert scored.judged.mean is None


def test_a_judge_that_hangs_does_not_hang_the_run() -> None:
    with judge_server(lambda *_: Say("7", wait=4.0)) as server:
        began = time.monotonic()
        scored = judge(server.url, timeout=0.2, attempts=2).score(evaluation("x"), QUIET)
        assert time.monotonic() - began < 3.5
        assert len(server.requests) == 2
    assert scored.judged is not None
    assert scored.judged.problems == ("question 1: no reply in time",)


def test_a_judge_that_is_gone_is_not_asked_for_every_row() -> None:
    with judge_server(lambda *_: Say(status=500)) as server:
        scored = judge(server.url, attempts=1, at_once=1).score(evaluation(*"abcdefghijkl"), QUIET)
        assert len(server.requests) == 8
    assert scored.judged is not None
    assert scored.judged.failed == 12
    assert all("status 500" in problem for problem in scored.judged.problems)


def test_no_more_requests_at_once_than_allowed() -> None:
    with judge_server(lambda *_: Say("7", wait=0.03)) as server:
        judge(server.url, at_once=3).score(evaluation(*"abcdefghi"), QUIET)
        assert server.most_at_once == [3]


def test_a_judge_that_prefers_a_place_decides_nothing() -> None:
    with judge_server(lambda *_: Say("A")) as server:
        comparison = judge(server.url).compare(evaluation("a", "b"), evaluation("c", "d"), QUIET)
        assert len(server.requests) == 4
    assert (comparison.wins, comparison.ties, comparison.losses) == (0, 2, 0)
    assert comparison.win_rate == 0.5


def prefers_longer(prompt: str, _: int) -> Say:
    a, b = (part.split("`")[1] for part in prompt.split("Response ")[1:3])
    return Say("T" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


def test_wins_ties_and_losses() -> None:
    before = evaluation("short", "much longer", "same1", "equal", "x")
    after = evaluation("a longer one", "short", "same2", "equal", "longer")
    with judge_server(prefers_longer) as server:
        comparison = judge(server.url).compare(before, after, QUIET)
        assert len(server.requests) == 8  # equal answers need no judge
    assert (comparison.wins, comparison.ties, comparison.losses, comparison.undecided) == (2, 2, 1, 0)
    assert comparison.win_rate == pytest.approx(0.6)


def test_a_row_with_one_usable_reply_is_undecided() -> None:
    def reply(prompt: str, number: int) -> Say:
        return Say("I cannot choose") if "Response A: `old`" in prompt else Say("A")

    with judge_server(reply) as server:
        comparison = judge(server.url).compare(evaluation("old"), evaluation("new"), QUIET)
    assert (comparison.wins, comparison.ties, comparison.losses, comparison.undecided) == (0, 0, 0, 1)
    assert comparison.win_rate is None
    assert comparison.problems == ("question 1: the reply 'I cannot choose'",)


def test_the_key_is_the_given_one_or_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with judge_server(lambda *_: Say("100")) as server:
        judge(server.url).check()
        monkeypatch.setenv(KEY_VARIABLE, "from-environment")
        judge(server.url).check()
        given = judge(server.url, key="given")
        given.check()
        sent = [request["headers"].get("authorization") for request in server.requests]
    assert sent == [None, "Bearer from-environment", "Bearer given"]
    assert "given" not in repr(given)


def test_check_says_what_to_change() -> None:
    cases = {
        "set TENORA_JUDGE_KEY": Say(status=401),
        "is the model 'judge-1' there": Say(status=404),
        "answers 400: 'no temperature, please'": Say(status=400, raw="no temperature, please"),
        "answers 503": Say(status=503),
        "does not reply as chat completions do": Say(raw="<html>"),
        "replies 'Hello!' where it is asked for an integer": Say("Hello!"),
    }
    for message, say in cases.items():
        with judge_server(lambda *_, say=say: say) as server, pytest.raises(JudgeError, match=message):
            judge(server.url, attempts=2).check()


def test_check_of_a_judge_that_is_not_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(TrainingError, match=rf"the judge at {url} cannot be reached \(.*refused"):
            judge(url).check()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://x:port"])
def test_an_url_that_is_none(url: str) -> None:
    with pytest.raises(JudgeError, match="write it as http://localhost:8000/v1"):
        Judge(url, "m")


def test_a_terminal_sees_a_bar() -> None:
    out = StringIO()
    with judge_server(lambda *_: Say("7")) as server:
        judge(server.url).score(evaluation("x", "y"), Console(file=out, force_terminal=True, width=80))
    assert "judging answers" in out.getvalue()
    assert "100%" in out.getvalue()
