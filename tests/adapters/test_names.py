"""Names become folder names, so everything that is not plainly a name is refused."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import errors
from adapters.errors import AdapterError, AdapterNameError
from adapters.names import AdapterName, AdapterRef

TRICKS = [
    "",
    "/",
    "acme",
    "acme/",
    "/support",
    "acme//support",
    "acme/support/x",
    "../etc",
    "acme/..",
    "acme/.",
    "acme/.hidden",
    "acme/a..b",
    "acme/-rf",
    "/etc/passwd",
    "acme/sup\0port",
    "acme/support\n",
    "\nacme/support",
    "acme/Support",
    "ACME/support",
    "acme/supp\u043ert",  # Cyrillic o
    "acme/ｓupport",  # full-width s
    "acme/ſupport",  # long s, which lower-cases to itself
    "acme/sup port",
    "acme/sup\\port",
    "acme/" + "a" * 65,
    "acme/%2e%2e",
    "~/support",
    "acme/support@",
    "acme/support:",
]


@pytest.mark.parametrize("text", TRICKS)
def test_path_tricks_in_names_are_refused(text: str) -> None:
    with pytest.raises(AdapterNameError):
        AdapterRef.parse(text)
    with pytest.raises(AdapterNameError):
        AdapterName.parse(text)


@pytest.mark.parametrize("part", ["..", "a/b", "/", "", "a\0", "A"])
def test_a_name_cannot_be_built_around_the_parser(part: str) -> None:
    with pytest.raises(AdapterNameError):
        AdapterName("acme", part)
    with pytest.raises(AdapterNameError):
        AdapterName(part, "support")
    with pytest.raises(AdapterNameError):
        AdapterRef(AdapterName("acme", "support"), alias=part)


def test_the_forms_of_a_reference() -> None:
    name = AdapterName("acme", "support-2.1_b")
    digest = "0123456789abcdef" * 4
    assert AdapterRef.parse("acme/support-2.1_b") == AdapterRef(name)
    assert AdapterRef.parse("support-2.1_b", "acme") == AdapterRef(name)
    assert AdapterRef.parse(f"acme/support-2.1_b@{digest}") == AdapterRef(name, version=digest)
    assert AdapterRef.parse("support-2.1_b@01234567", "acme") == AdapterRef(name, version="01234567")
    assert AdapterRef.parse("acme/support-2.1_b:stable") == AdapterRef(name, alias="stable")
    # A default tenant does not overrule the one that is written.
    assert AdapterRef.parse("zeta/x", "acme") == AdapterRef(AdapterName("zeta", "x"))


@pytest.mark.parametrize(
    "text", ["a/b@0123456", "a/b@0123456g", "a/b@ABCDEF01", "a/b@" + "0" * 65, "a/b:x:y", "a/b@01234567:x"]
)
def test_versions_and_aliases_are_checked_too(text: str) -> None:
    with pytest.raises(AdapterNameError) as caught:
        AdapterRef.parse(text)
    assert caught.value.key in ("version", "alias")


def test_a_reference_is_a_version_or_an_alias() -> None:
    with pytest.raises(AdapterNameError, match="not both"):
        AdapterRef(AdapterName("a", "b"), version="0" * 8, alias="latest")


@given(st.text(max_size=80), st.sampled_from([None, "acme"]))
def test_any_text_is_a_name_or_a_name_error(text: str, tenant: str | None) -> None:
    try:
        ref = AdapterRef.parse(text, tenant)
    except AdapterNameError as error:
        assert len(str(error)) < 1000
        return
    assert AdapterRef.parse(str(ref)) == ref
    assert "/" not in ref.name.name
    assert ".." not in str(ref)


def test_errors_travel_between_processes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdapterError)]
    assert len(kinds) == 10
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("a message", key="a.key")))
        assert (type(error), str(error), error.key) == (kind, "a message", "a.key")
