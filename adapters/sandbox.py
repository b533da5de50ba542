"""Runs a user's Jinja text, which is not trusted: it may loop, multiply or pry, and must end in an error, soon.

Three fences, none of which relies on the others:

1. The language: only the tags and expressions in `_ALLOWED` compile. No macros, includes, blocks or recursion,
   so loops are the only thing that repeats.
2. Work: every loop turn and every operation takes a step from a budget, which also watches the thread's CPU time.
3. Size: every value an expression makes is measured, nested parts included, before it can be used again.

What is left for a template is a whitelist too: the filters, tests, methods and attributes named below.
"""

import functools
import json
import types
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from adapters.budget import Budget, size_of
from adapters.errors import TemplateError

MAX_TEXT = 32_768  # characters of a template
_BUDGET = "budget!"  # no template can spell these names
_TICK, _MADE, _CONCAT = "tick!", "made!", "concat!"

_ALLOWED = {
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.With, nodes.Assign, nodes.Name,
    nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr,
    nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare,
    nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.And, nodes.Or,
    nodes.Not, nodes.Neg, nodes.Pos, nodes.Break, nodes.Continue,
}  # fmt: skip
_REFUSED_NAMES = {"self", "super", "caller", "varargs", "kwargs"}
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        "strip", "lstrip", "rstrip", "upper", "lower", "title", "capitalize", "startswith", "endswith", "split",
        "rsplit", "splitlines", "replace", "find", "count", "isdigit", "isalpha", "isspace",
    }),
    dict: frozenset({"get", "items", "keys", "values"}),
}  # fmt: skip
_LOOP = frozenset({
    "index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "depth0",
})  # fmt: skip
_TESTS = (
    "boolean", "defined", "undefined", "none", "true", "false", "string", "number", "integer", "float", "mapping",
    "sequence", "iterable", "odd", "even", "in", "eq", "equalto", "ne", "lt", "le", "gt", "ge", "lower", "upper",
)  # fmt: skip


class _Fence(NodeTransformer):
    """Refuses what is not allowed, and puts a step into each loop and a measure around each literal."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) not in _ALLOWED:
            raise _refused(f"{type(node).__name__.lower()!r}", node)
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (the visitor finds it by this name)
        if node.recursive:
            raise _refused("a recursive loop", node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(True), _TICK), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(True), _TICK), node.test, lineno=node.lineno)
        return node

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        if node.name in _REFUSED_NAMES:
            raise _refused(f"{node.name!r}", node)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _refused("a call with * or **", node)
        return self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        # A filter block has no expression to filter.
        if node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _refused("a filter block, or a filter with * or **", node)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node.nodes[0], _CONCAT, node.nodes[1:])

    def _literal(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filter(node, _MADE)

    visit_List = visit_Dict = visit_Tuple = _literal  # noqa: N815


def _refused(what: str, node: nodes.Node) -> TemplateError:
    return TemplateError(f"line {node.lineno} of the prompt template uses {what}, which is not allowed", key="template")


def _filter(node: nodes.Expr, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


def _budget(context: Context) -> Budget:
    budget = context[_BUDGET]
    assert isinstance(budget, Budget)
    return budget


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with transformers' white-space rules, so that a chat template copied here reads the same."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_printable,
            optimized=False,
            autoescape=False,
        )
        self.globals = {"namespace": Namespace, "raise_exception": _raise_exception}
        self.filters = {name: _measured(function) for name, function in _FILTERS.items()}
        self.tests = {name: TESTS[name] for name in _TESTS}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        if type(obj) is Namespace:
            return not attr.startswith("_")
        return attr in _METHODS.get(type(obj), ())

    def is_safe_callable(self, obj: Any) -> bool:
        if obj is Namespace or obj is _raise_exception:
            return True
        owner = type(getattr(obj, "__self__", None))
        return isinstance(obj, types.BuiltinMethodType) and obj.__name__ in _METHODS.get(owner, ())

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = _budget(__context)
        for internal in ("_loop_vars", "_block_vars"):  # Jinja's own, meant for functions that take a context
            kwargs.pop(internal, None)
        if not __self.is_safe_callable(__obj):
            raise TemplateError("the prompt template calls something that is not allowed", key="template")
        if getattr(__obj, "__name__", "") == "replace":
            return budget.made(_replace(budget, __obj.__self__, *args, **kwargs))
        result = __obj(*args, **kwargs)
        if isinstance(result, Namespace):
            budget.step()
            return result
        return budget.made(list(result) if type(result) in _VIEWS else result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "%" and isinstance(left, str):
            raise TemplateError(
                "the prompt template formats a string with %: join parts with ~ instead", key="template"
            )
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    budget.room_for(size_of(sequence, budget.limit) * max(times, 0))
        return budget.made(self.binop_table[operator](left, right))


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _printable(value: Any) -> Any:
    """Numbers and text are printed; printing a list is nearly always a mistake, and may be huge."""
    if isinstance(value, str | int | float) or value is None or isinstance(value, jinja2.Undefined):
        return value
    raise TemplateError(
        f"the prompt template prints a {type(value).__name__}: use join, tojson or a loop", key="template"
    )


def _raise_exception(message: Any) -> None:
    raise TemplateError(f"the prompt template refuses this input: {message!s:.300}", key="template")


def _replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    budget.room_for(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def _join(budget: Budget, items: Any, separator: str = "") -> str:
    parts = [_text(item) for item in items]
    budget.room_for(sum(map(len, parts)) + len(parts) * len(separator))
    return separator.join(parts)


def _concat(budget: Budget, *items: Any) -> str:
    return _join(budget, items)


def _tick(_budget: Budget, value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    return str(_printable(value))


def _default(_budget: Budget, value: Any, other: Any = "", boolean: bool = False) -> Any:
    return other if isinstance(value, jinja2.Undefined) or (boolean and not value) else value


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _budget, *args: function(*args)


_FILTERS: Mapping[str, Callable[..., Any]] = {
    _TICK: _tick,
    _MADE: _tick,
    _CONCAT: _concat,
    "join": _join,
    "replace": _replace,
    "default": _default,
    "d": _default,
    "trim": _plain(lambda value, chars=None: _text(value).strip(chars)),
    "upper": _plain(lambda value: _text(value).upper()),
    "lower": _plain(lambda value: _text(value).lower()),
    "title": _plain(lambda value: _text(value).title()),
    "capitalize": _plain(lambda value: _text(value).capitalize()),
    "string": _plain(_text),
    "int": _plain(int),
    "length": _plain(len),
    "count": _plain(len),
    "list": _plain(list),
    "first": _plain(lambda value: value[0]),
    "last": _plain(lambda value: value[-1]),
    "tojson": _plain(lambda value: json.dumps(value, ensure_ascii=False)),
}


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.step()
        return budget.made(function(budget, *args, **kwargs))

    return run


@functools.cache
def _environment() -> _Environment:
    return _Environment()


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> jinja2.Template:
    if len(text) > MAX_TEXT:
        raise TemplateError(
            f"the prompt template has {len(text)} characters; at most {MAX_TEXT} are allowed", key="template"
        )
    environment = _environment()
    try:
        return environment.from_string(_Fence().visit(environment.parse(text)))
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno} of the prompt template: {error.message}", key="template") from error
    except Exception as error:  # nesting too deep for the parser, for Python's compiler …
        raise TemplateError(f"the prompt template does not compile: {_reason(error)}", key="template") from error


def compile_text(text: str) -> None:
    """Refuse a text that is no template, or that uses what is not allowed."""
    _compiled(text)


def render_text(text: str, variables: Mapping[str, Any]) -> str:
    """Render an untrusted template; anything wrong, and anything too much, is a TemplateError."""
    template = _compiled(text)
    size = size_of(dict(variables), 2**31)
    budget = Budget(size)
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate({**variables, _BUDGET: budget}):
            budget.step()
            length += len(piece)
            budget.room_for(length)
            pieces.append(piece)
    except TemplateError:
        raise
    except Exception as error:  # a template can fail in as many ways as Python can
        raise TemplateError(f"the prompt template failed: {_reason(error)}", key="template") from error
    return "".join(pieces)


def _reason(error: Exception) -> str:
    return f"{str(error) or type(error).__name__:.300}"
