"""The typed client against a real server, sync and async."""

import asyncio
import json

import httpx
import pytest

from service.client import AsyncTenoraClient, ScoreItem, TenoraClient, TenoraError
from service.generation import _event
from tests.service.conftest import ACME, ADMIN, Home
from tests.service.running import RunningServer, free_port


def test_sync(server: RunningServer, home: Home) -> None:
    with TenoraClient(server.url, ACME) as client:
        assert client.ready()
        answer = client.chat("chat", "It was good.", max_tokens=6, temperature=0, ignore_eos=True)
        assert answer.completion_tokens == 6
        assert answer.finish_reason == "length"
        assert answer.adapter is not None
        assert answer.adapter.startswith("acme/chat@")
        pieces = client.stream("chat", "It was good.", max_tokens=6, temperature=0, ignore_eos=True)
        assert "".join(pieces) == answer.text
        assert client.complete("write", "It was", max_tokens=2, ignore_eos=True).completion_tokens == 2
        assert client.instruct("write", "Say it.", "It was good.", max_tokens=2, seed=1, stop=["zzz"]).tier == "device"
        (result,) = client.classify("label", "It was good.")
        assert set(result.probabilities) == {"bad", "good"}
        assert result.probabilities[result.label] == max(result.probabilities.values())
        assert result.selected is None
        models = client.models()
        assert [model.id for model in models] == ["tiny-llama", "acme/chat", "acme/label", "acme/write"]
        assert models[2].task == "classify"
        assert client.base().fingerprint == home.base.fingerprint


def test_async(server: RunningServer) -> None:
    async def talk() -> None:
        async with AsyncTenoraClient(server.url, ADMIN) as client:
            assert await client.ready()
            options = {"max_tokens": 5, "temperature": 0.0, "ignore_eos": True}
            answers = await asyncio.gather(
                *(
                    client.chat(model, "It was good.", max_tokens=5, temperature=0)
                    for model in ("acme/chat", "acme/write")
                )
            )
            assert all(answer.prompt_tokens > 0 for answer in answers)
            text = [piece async for piece in client.stream("acme/chat", [{"role": "user", "content": "a"}], **options)]  # type: ignore[arg-type]
            assert text
            assert (await client.complete("tiny-llama", "a", max_tokens=1)).tier == "base"
            assert (await client.instruct("acme/write", "a", max_tokens=1)).adapter
            assert len(await client.classify("zeta/label", ["a", "b"])) == 2
            (tags,) = await client.classify("beta/tags", "a", threshold=0)
            assert tags.selected == ("bill", "late", "rude")
            (score,) = await client.score("beta/reward", {"instruction": "a", "input": "b", "answer": "c"})
            assert score.adapter is not None
            assert score.adapter.startswith("beta/reward@")
            assert len(await client.models()) == 9
            assert (await client.base()).kind == "decoder"
            with pytest.raises(TenoraError) as raised:
                await client.chat("acme/nothing", "a")
            assert raised.value.status == 404

    asyncio.run(talk())


ODD = "one\u2028two\u0085three\rfour"


def test_events_are_ascii() -> None:
    """Clients that end a line at every character Unicode calls a line's end read them whole."""
    event = _event({"text": ODD})
    assert event.isascii()
    assert len(event.decode().splitlines()) == 2
    assert json.loads(event.removeprefix(b"data: ")) == {"text": ODD}


def test_only_a_line_feed_ends_a_line() -> None:
    chunk = json.dumps({"choices": [{"delta": {"content": ODD}}]}, ensure_ascii=False).encode()
    body = b"data: " + chunk + b"\r\n\r\ndata: [DONE]\n\n"
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with TenoraClient("http://test", transport=transport) as client:
        assert list(client.stream("a", "b")) == [ODD]

    async def talk() -> list[str]:
        async with AsyncTenoraClient("http://test", transport=transport) as client:
            return [piece async for piece in client.stream("a", "b")]

    assert asyncio.run(talk()) == [ODD]


def test_scores_and_several_labels(server: RunningServer) -> None:
    with TenoraClient(server.url, ADMIN) as client:
        one: ScoreItem = {"prompt": "Where is it?", "answer": "It left today."}
        turns = [{"role": "user", "content": "Where is it?"}]
        scores = client.score("beta/reward", [one, {"prompt": "Where is it?", "answer": "No."}])
        (same,) = client.score("beta/reward", {"messages": turns, "answer": "It left today."})
        assert scores[0].score == pytest.approx(same.score, abs=1e-4)
        assert scores[0].score != pytest.approx(scores[1].score, abs=1e-3)
        (tags,) = client.classify("beta/tags", "It was good.")
        assert tags.selected == tuple(label for label, p in tags.probabilities.items() if p >= 0.5)


def test_errors_are_typed(server: RunningServer) -> None:
    with TenoraClient(server.url, ADMIN) as client:
        with pytest.raises(TenoraError) as raised:
            client.classify("acme/write", "a")
        assert (raised.value.status, raised.value.code, raised.value.param) == (400, "wrong_task", "model")
        with pytest.raises(TenoraError) as raised:
            list(client.stream("acme/nothing", "a"))
        assert (raised.value.status, raised.value.code) == (404, "model_not_found")
    with TenoraClient(server.url, "sk-wrong-key") as client, pytest.raises(TenoraError) as raised:
        client.models()
    assert raised.value.status == 401


def test_no_server() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with TenoraClient(url) as client:
        assert not client.ready()
        with pytest.raises(TenoraError, match="tenora serve") as raised:
            client.models()
        assert raised.value.status == 0
    with TenoraClient("ftp://nowhere") as client, pytest.raises(TenoraError):
        client.models()


def test_an_error_inside_a_stream_is_raised() -> None:
    piece = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    error = b'event: error\ndata: {"error": {"message": "died", "code": "x"}}\n\n'
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=piece + error))
    with TenoraClient(transport=transport) as client:
        pieces = client.stream("m", "a")
        assert next(pieces) == "a"
        with pytest.raises(TenoraError, match="died"):
            next(pieces)


def test_another_server_altogether() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>"))
    with TenoraClient(transport=transport) as client, pytest.raises(TenoraError, match="502"):
        client.models()
