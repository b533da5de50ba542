"""A stranger's template ends in text or in a TemplateError, within a second and without eating the memory."""

import contextlib
import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import TemplateError
from adapters.sandbox import compile_text, render_text

VARIABLES = {
    "messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it"}],
    "instruction": "say it",
    "input": "",
}

LOOPS = {
    "nested loops": "{% for a in 'x' * 300 %}" * 6 + "." + "{% endfor %}" * 6,
    "loops over loops": "{% set l = 'x' * 60000 %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for a in 'x' * 60000 if a == 'y' %}{% endfor %}",
    "a loop of filters": "{% for a in 'x' * 9000 %}{{ ('b' * 65000).split('b') | length }}{% endfor %}",
    "big comparisons": "{% for a in 'x' * 60000 %}{% if 'b' * 60000 == 'b' * 60000 %}{% endif %}{% endfor %}",
    "a huge range": "{% for a in range(1000000000) %}{% endfor %}",
    "recursive loop": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros": "{% macro a(f) %}{{ f(f) }}{% endmacro %}{{ a(a) }}",
    "call block": "{% call x() %}{% endcall %}",
}
BOMBS = {
    "string times number": "{{ 'a' * 1000000000 }}",
    "number times string": "{{ 1000000000 * 'a' }}",
    "list times number": "{{ ([1, 2] * 1000000000) | length }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "squaring": "{% set n = namespace(x=9) %}{% for a in 'x' * 99 %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a long number": "{{ " + "9" * 5000 + " }}",
    "doubling": "{% set n = namespace(x='a') %}{% for a in 'x' * 99 %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling with +": "{% set n = namespace(x='a') %}{% for a in 'x' * 99 %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for a in 'x' * 99 %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list in itself": "{% set n = namespace(x=[1]) %}{% for a in 'x' * 9 %}{% set n.x = [n.x, n.x] %}{% endfor %}",
    "wide lists": "{% set a = [1] * 999 %}{% set b = [a] * 999 %}{{ [b] * 999 | tojson }}",
    "replace": "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "the method replace": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "replace nothing": "{{ ('a' * 60000).replace('', 'b' * 60000) }}",
    "join": "{{ ('a' * 9999) | join('b' * 9999) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a' | indent(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:1000000000d}'.format(1) }}",
    "output": "{% for a in 'x' * 40000 %}{{ 'b' * 60000 }}{% endfor %}",
    "wide output": "{{ 'b' * 60000 }}" * 100,
    "printed list": "{{ messages }}",
    "printed namespace": "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
    "tojson": "{% set n = namespace() %}{{ [n] | tojson }}",
}
PRYING = {
    "class": "{{ ''.__class__ }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "mro": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "init": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "loop internals": "{% for a in messages %}{{ loop._iterable }}{% endfor %}",
    "loop calls": "{% for a in messages %}{{ loop(a) }}{% endfor %}",
    "cycler": "{{ cycler('a') }}",
    "joiner": "{{ joiner() }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "dict": "{{ dict(a=1) }}",
    "namespace of pairs": "{% set n = namespace(messages[0]) %}{{ n.__class__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import path %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block x %}{% endblock %}",
    "change": "{{ messages.append(1) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "format pry": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a}'.format_map({'a': 1}) }}",
    "encode": "{{ 'a'.encode() }}",
    "starred": "{{ 'a'.join(*messages) }}",
    "map": "{{ messages | map(attribute='__class__') | list }}",
    "budget": "{{ budget }}",
    "undefined": "{{ nothing }}",
    "undefined attribute": "{{ messages[0].nothing }}",
    "undefined in a test": "{% if nothing %}{% endif %}",
    "out of range": "{{ messages[9].role }}",
}
BROKEN = {
    "syntax": "{% for %}",
    "unclosed": "{{ 'a'",
    "unknown tag": "{% fly %}",
    "unknown filter": "{{ 'a' | fly }}",
    "division": "{{ 1 / 0 }}",
    "types": "{{ 'a' - 1 }}",
    "order": "{{ 'a' < 1 }}",
    "no integer": "{{ 'a' | int }}",
    "arguments": "{{ 'a' | upper(1, 2) }}",
    "wrong arguments": "{{ 'a'.replace() }}",
    "deep parentheses": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "deep not": "{{ " + "not " * 5000 + "1 }}",
    "deep lists": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "deep attributes": "{{ messages" + ".a" * 5000 + " }}",
    "deep loops": "{% for a in messages %}" * 60 + "{% endfor %}" * 60,
    "deep ifs": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "too long": "a" * 40_000,
    "raised": "{{ raise_exception('roles must alternate') }}",
}
GROUPS = {"loop": LOOPS, "bomb": BOMBS, "prying": PRYING, "broken": BROKEN}
ALL = {f"{group}: {name}": text for group, texts in GROUPS.items() for name, text in texts.items()}


@pytest.mark.parametrize("name", ALL)
def test_bad_templates_end_in_a_template_error_within_a_second(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        render_text(ALL[name], VARIABLES)
    assert time.thread_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert caught.value.key == "template"
    assert len(str(caught.value)) < 500


GOOD = {
    "{% for m in messages %}{{ m.role }}={{ m['content'] }}{% if not loop.last %};{% endif %}{% endfor %}": (
        "user=say it;assistant=it"
    ),
    "{{ messages[0].content | upper | replace('SAY', 'tell') }}": "tell IT",
    "{{ messages[-1:][0].role ~ 1 ~ (2 + 3 * 4 - 1) // 2 % 4 }}": "assistant12",
    "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}": "2",
    "{% set n = namespace(t='') %}{% for w in instruction.split() %}{% set n.t = n.t ~ w[0] %}{% endfor %}{{ n.t }}": (
        "si"
    ),
    "{% for k, v in messages[0].items() %}{{ k }}:{{ v }} {% endfor %}": "role:user content:say it ",
    "{{ 'x' if input else 'y' }}{{ missing | default('z') }}{{ input | default('d', true) }}": "yzd",
    "{% if missing is defined %}a{% elif messages is string %}b{% else %}c{% endif %}": "c",
    "{{ ['a', 'b'] | join(', ') }}{{ {'k': 'é'} | tojson }}": 'a, b{"k": "é"}',
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}": "say it",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{% break %}{% endfor %}": "2",
    "{% with a = 'b' %}{{ a }}{% endwith %}{# a comment #}{% raw %}{{ x }}{% endraw %}": "b{{ x }}",
    "{{ instruction.strip().startswith('say') }} {{ 'it' in instruction }} {{ instruction | length }}": "True True 6",
    "  {% if true %}\nline\n  {% endif %}\nend\n": "line\nend",
    "{% for a, b in [('x', 1), ('y', 2)] %}{{ a }}{{ b }}{% endfor %}": "x1y2",
    "{{ messages | last | tojson }}{{ (messages | first).role }}": '{"role": "assistant", "content": "it"}user',
    "<b>&{{ '<' }}": "<b>&<",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_templates_need_is_there(text: str) -> None:
    assert render_text(text, VARIABLES) == GOOD[text]


def test_the_input_cannot_be_changed() -> None:
    render_text("{% set messages = [] %}{{ messages | length }}", VARIABLES)
    assert len(VARIABLES["messages"]) == 2


def test_a_long_input_is_not_a_bomb() -> None:
    text = "word " * 100_000
    assert render_text("{{ instruction }}{{ instruction | trim }}", {"instruction": text}) == text + text.strip()


def test_an_input_is_never_a_template() -> None:
    assert render_text("{{ instruction }}", {"instruction": "{{ 1/0 }}{% for %}"}) == "{{ 1/0 }}{% for %}"


def test_errors_name_the_line() -> None:
    with pytest.raises(TemplateError, match="line 3 of the prompt template"):
        compile_text("a\nb\n{% include 'x' %}")


PIECES = st.sampled_from(
    [
        "{% for a in messages %}",
        "{% endfor %}",
        "{% if instruction %}",
        "{% endif %}",
        "{{ instruction ~ instruction }}",
        "{% set x = [messages, messages] %}",
        "{{ x | tojson }}",
        "{{ 'a' * 500 }}",
        "{% set x = x + x %}",
        "{{ x | length }}",
        "{% for a in x %}",
        "{{ loop.index * 999999999 }}",
        "{% set x = {'a': x} %}",
        "{{ (x ~ '').replace('', 'xy') }}",
        "text",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=14))
def test_any_mixture_ends_quickly(pieces: list[str]) -> None:
    begin = time.thread_time()
    with contextlib.suppress(TemplateError):
        assert len(render_text("".join(pieces), VARIABLES)) < 10**6
    assert time.thread_time() - begin < 1
