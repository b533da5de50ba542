"""/v1/adapters/{tenant}/{name}/splits/{alias}: how an alias's requests are split between versions, and what came of it.

Only who owns the adapter may see it; to everybody else it does not exist, though a granted tenant's requests are split
like the owner's.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapters.names import check_part
from adapters.splits import Split
from service.back_out import percentile
from service.figures import Row
from service.split_messages import EndSplit, SetSplit, Shown, ShowSplit, SplitQuestion
from service.splitting import SplitRules
from service.state import state_of
from service.tenants.caller import caller_of, owned


async def show_split(request: Request, tenant: str, name: str, alias: str) -> Response:
    """The rules for an alias, and its versions side by side since the rules were set."""
    caller = caller_of(request)
    if "publish" not in caller.scopes:
        caller.check("infer")
    return _shown(await _ask(request, ShowSplit(owned(request, tenant, name), _alias(alias))))


async def set_split(request: Request, tenant: str, name: str, alias: str, body: SplitRules) -> Response:
    """Split an alias's requests between versions by these rules; what was known under others is forgotten."""
    adapter, by = owned(request, tenant, name), caller_of(request).key_id
    return _shown(await _ask(request, SetSplit(adapter, by, _alias(alias), body.rules)))


async def end_split(request: Request, tenant: str, name: str, alias: str) -> Response:
    """Send all of an alias's requests to its own version again."""
    adapter = owned(request, tenant, name)
    await _ask(request, EndSplit(adapter, caller_of(request).key_id, _alias(alias)))
    return JSONResponse({"id": f"{adapter}:{alias}", "object": "adapter.split.deleted", "deleted": True})


async def _ask(request: Request, question: SplitQuestion) -> Any:
    return await state_of(request).client.ask(question)


def _alias(alias: str) -> str:
    check_part(alias, "alias")
    return alias


def _shown(shown: Shown) -> Response:
    split, rules = shown.split, shown.split.rules
    back_out = rules.back_out
    return JSONResponse(
        {
            "id": split.shown,
            "object": "adapter.split",
            "alias": split.alias,
            "digest": split.own,
            "set_at": split.set_at.isoformat(),
            "rules": {
                "versions": dict(rules.weights),
                "sticky": rules.sticky,
                "shadow": rules.shadow,
                "back_out": None if back_out is None else {name: getattr(back_out, name) for name in _BACK_OUT},
            },
            "backed_out": dict(split.backed_out),
            "data": _table(shown),
        }
    )


_BACK_OUT = ("error_rate", "p95_ratio", "min_requests", "window_s")


def _table(shown: Shown) -> list[dict[str, Any]]:
    """A row for each version that answers, then one for the shadow."""
    split = shown.split
    keys = [(digest, False) for digest in split.rules.weights]
    if split.own not in split.rules.weights and (split.own, False) in shown.rows:
        keys.append((split.own, False))
    if split.rules.shadow is not None:
        keys.append((split.rules.shadow, True))
    return [_entry(split, *key, shown.rows.get(key, Row())) for key in keys]


def _entry(split: Split, digest: str, shadow: bool, row: Row) -> dict[str, Any]:
    judged = len(row.samples)
    entry = {
        "digest": digest,
        "role": "shadow" if shadow else "own" if digest == split.own else "candidate",
        "weight": None if shadow else split.rules.weights.get(digest, 0.0),
        "requests": row.requests,
        "aborted": row.aborted,
        "errors": dict(row.errors),
        "error_rate": sum(sample.failed for sample in row.samples) / judged if judged else None,
        "finish_reasons": dict(row.finished),
        "prompt_tokens": row.prompt_tokens,
        "generated_tokens": row.generated_tokens,
        "ttft_ms": _spread([sample.ttft for sample in row.samples if sample.ttft is not None]),
        "total_ms": _spread([sample.total for sample in row.samples if not sample.failed]),
    }
    if shadow:
        equal = row.equal / row.compared if row.compared else None
        entry |= {"dropped": row.dropped, "compared": row.compared, "equal": equal}
    return entry


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    found = {name: percentile(seconds, part) for name, part in (("p50", 0.5), ("p95", 0.95))}
    return {name: None if value is None else round(value * 1e3, 3) for name, value in found.items()}
