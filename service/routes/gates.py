"""What an alias demands of a version, and what was found; setting and lifting it is for keys with the scope admin."""

from typing import Any

from fastapi import Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from adapters.names import LATEST, check_part
from service.errors import NotFoundError
from service.gate.messages import CheckVersion, GateQuestion, RemoveGate, SetGate, ShowGates
from service.gate.rules import GateRules
from service.gate.verdict import Verdict
from service.routes.lifecycle import CHECKS_TIMEOUT_S
from service.schemas import Name, WireModel
from service.state import state_of
from service.tenants.caller import caller_of, owned


class CheckRequest(WireModel):
    """POST /v1/adapters/{tenant}/{name}/check."""

    alias: Name = Field(LATEST, description="The alias whose demands are checked.")
    version: Name = Field(description="The version: its digest, or a beginning of at least 8 digits.")


async def list_gates(request: Request, tenant: str, name: str) -> Response:
    """What the aliases of an adapter demand, and what was found of its versions, the newest first."""
    gates, verdicts = await _ask(request, ShowGates(owned(request, tenant, name)))
    data = [{"alias": alias, "rules": rules.model_dump(mode="json")} for alias, rules in gates.items()]
    return JSONResponse({"object": "list", "data": data, "verdicts": [verdict.as_dict() for verdict in verdicts]})


async def set_gate(request: Request, tenant: str, name: str, alias: str, body: GateRules) -> Response:
    """Demand something of every version that the alias is to point at from now on."""
    adapter = owned(request, tenant, name)
    check_part(alias, "alias")
    await _ask(request, SetGate(adapter, caller_of(request).key_id, alias, body))
    return JSONResponse({"object": "gate", "alias": alias, "rules": body.model_dump(mode="json")})


async def remove_gate(request: Request, tenant: str, name: str, alias: str) -> Response:
    """Demand nothing any more."""
    adapter = owned(request, tenant, name)
    if not await _ask(request, RemoveGate(adapter, caller_of(request).key_id, alias)):
        raise NotFoundError(f"The alias `{alias}` of `{adapter}` has no gate.", param="alias")
    return JSONResponse({"id": f"{adapter}:{alias}", "object": "gate.deleted", "deleted": True})


async def check_version(request: Request, tenant: str, name: str, body: CheckRequest) -> Response:
    """Check a version as the alias demands, without moving anything."""
    adapter = owned(request, tenant, name)
    check_part(body.alias, "alias")
    verdict: Verdict = await _ask(request, CheckVersion(adapter, caller_of(request).key_id, body.alias, body.version))
    return JSONResponse({"object": "verdict", **verdict.as_dict()})


async def _ask(request: Request, question: GateQuestion) -> Any:
    return await state_of(request).client.ask(question, CHECKS_TIMEOUT_S)
