"""The settings: read once, checked, frozen."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import (
    Settings,
    SettingsError,
    load_client_settings,
    load_settings,
    load_store_settings,
    unknown_variables,
)

KEY = "sk-something"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("TENORA_")]:
        monkeypatch.delenv(name)


def test_defaults_that_scripts_rely_on() -> None:
    settings = load_settings()
    assert (settings.base, settings.store, settings.host, settings.port) == (
        "embedded",
        Path("store"),
        "127.0.0.1",
        8000,
    )
    assert (settings.dtype, settings.device) == ("auto", "auto")


def test_environment_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENORA_PORT", "9001")
    monkeypatch.setenv("TENORA_API_KEYS", '{"sk-something": "acme"}')
    monkeypatch.setenv("TENORA_ADAPTER_FOLDERS", '["/a", "/b"]')
    monkeypatch.setenv("TENORA_THREADS", "")
    settings = load_settings(base="folder", dtype=None)
    assert settings.port == 9001
    assert settings.api_keys == {KEY: "acme"}
    assert settings.adapter_folders == (Path("/a"), Path("/b"))
    assert settings.threads is None
    assert load_settings(port=9002).port == 9002


def test_frozen_and_discreet() -> None:
    settings = load_settings(api_keys={KEY: "acme"})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert KEY not in repr(settings)
    assert KEY not in repr(load_client_settings(api_key=KEY))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": 80}, "port"), ({"port": "x"}, "port"), ({"dtype": "int8"}, "dtype"), ({"device": "tpu"}, "device"),
        ({"host": "example.org"}, "host"), ({"max_queue": 0}, "max_queue"),
        ({"request_timeout": -1}, "request_timeout"),
        ({"request_timeout": "nan"}, "request_timeout"), ({"host_cache_bytes": -1}, "host_cache_bytes"),
        ({"api_keys": {"short": "acme"}}, "at least 8"), ({"api_keys": {KEY: "../x"}}, "tenant"),
        ({"api_keys": {KEY: ""}}, "tenant"), ({"nonsense": 1}, "nonsense"), ({"log_level": "loud"}, "log_level"),
    ],
)  # fmt: skip
def test_wrong_values_are_told_by_name(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)) as raised:
        load_settings(**flags)
    assert "\n" not in str(raised.value)


def test_keys_never_stand_in_a_message() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(api_keys={"sk-a-secret-thing": "NOT A TENANT"})
    assert "sk-a-secret-thing" not in str(raised.value)


def test_only_loopback_is_open_without_keys() -> None:
    assert load_settings().open_without_keys
    for host in ("0.0.0.0", "::"):
        assert not load_settings(host=host).open_without_keys
        assert load_settings(host=host, allow_no_auth=True).open_without_keys


def test_open_settings_do_not_hinder_the_store_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENORA_HOST", "0.0.0.0")
    assert load_store_settings(store=Path("/x")).store == Path("/x")


def test_urls() -> None:
    assert load_settings(host="localhost", port=9000).url == "http://127.0.0.1:9000"
    assert load_settings(host="0.0.0.0", allow_no_auth=True).url == "http://127.0.0.1:8000"
    assert load_settings(host="::", allow_no_auth=True).url == "http://[::1]:8000"


def test_broken_json_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENORA_API_KEYS", "{oops")
    with pytest.raises(SettingsError, match="TENORA_API_KEYS is not valid JSON"):
        load_settings()


def test_slips_of_the_pen_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENORA_PROT", "1")
    monkeypatch.setenv("TENORA_URL", "http://somewhere")
    assert unknown_variables() == ["TENORA_PROT"]


def test_no_other_module_reads_the_environment() -> None:
    service = Path(Settings.__module__.replace(".", "/")).parent
    root = Path(__file__).resolve().parents[2] / service
    readers = {
        path.name for path in root.rglob("*.py") if re.search(r"os\.environ|getenv|envvar", path.read_text("utf-8"))
    }
    assert readers == {"settings.py"}
