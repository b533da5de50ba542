"""PEFT's rule for `rank_pattern` and `alpha_pattern`, for patterns that come from strangers.

A key is a regular expression that must match the end of a module's name, from a dot on. Python's matcher can be
kept busy for years by a small expression, and cannot be interrupted; so only keys that are cheap by their form are
matched: names, `.`, `\\d`, `[0-9]`, up to three repeats of one character and up to two groups of plain alternatives.
"""

import re
from collections.abc import Iterable

from adapters.errors import AdapterUnsupportedError

MAX_PATTERNS = 1024
_MAX_LENGTH, _MAX_REPEATS, _MAX_GROUPS = 256, 3, 2
_ATOM = r"(?:[\w.\-]|\\[.dw\-]|\[\^?[\w.\-]+\])"
_REPEAT = r"(?:[*+?]\??|\{\d{1,2}(?:,\d{0,2})?\})"
_GROUP = r"\((?:\?:)?(?:[\w.\-]|\\\.|\|)+\)"


def check_patterns(field: str, keys: Iterable[str]) -> None:
    """Refuse keys that are not cheap to match, naming ``field``."""
    keys = list(keys)
    if len(keys) > MAX_PATTERNS:
        raise AdapterUnsupportedError(f"{field} has {len(keys)} keys; at most {MAX_PATTERNS} are served", key=field)
    for key in keys:
        if not _is_cheap(key):
            message = (
                f"{field} key {key[:80]!a} is not served: use a module name, or an expression of names, '.', \\d, "
                f"[0-9], at most {_MAX_REPEATS} repeats (.*) and {_MAX_GROUPS} groups of alternatives (a|b)"
            )
            raise AdapterUnsupportedError(message, key=field)


def matching_key(keys: Iterable[str], module: str) -> str | None:
    """The first key that matches ``module``, as PEFT finds it."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), None)


def _is_cheap(key: str) -> bool:
    # The length comes first: it bounds the work of the checks themselves.
    if not 0 < len(key) <= _MAX_LENGTH or not _FORM.fullmatch(key):
        return False
    try:
        re.compile(key)
    except re.error:
        return False
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", key).replace("(?:", "(")
    repeats = len(re.findall(_REPEAT, plain))
    groups = re.findall(r"\(([^)]*)\)", plain)
    distinct = all(len(set(group.split("|"))) == group.count("|") + 1 for group in groups)
    return repeats <= _MAX_REPEATS and len(groups) <= _MAX_GROUPS and distinct


# The form is checked possessively (?>…): this expression is itself matched against a stranger's text.
_FORM = re.compile(rf"\^?(?:{_GROUP}|{_ATOM}(?>{_REPEAT}?))++\$?")
