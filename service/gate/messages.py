"""What the HTTP process asks the engine process about gates."""

from dataclasses import dataclass

from adapters.names import AdapterName
from service.gate.rules import GateRules


@dataclass(frozen=True, slots=True)
class SetGate:
    """Demand something of every version that an alias is to point at from now on."""

    adapter: AdapterName
    by: str
    alias: str
    rules: GateRules


@dataclass(frozen=True, slots=True)
class RemoveGate:
    """Demand nothing any more; answered with whether something was demanded."""

    adapter: AdapterName
    by: str
    alias: str


@dataclass(frozen=True, slots=True)
class ShowGates:
    """Ask what the aliases of an adapter demand, and what was found of late: ({alias: rules}, verdicts)."""

    adapter: AdapterName


@dataclass(frozen=True, slots=True)
class CheckVersion:
    """Check a version as an alias demands, without moving anything; answered with the verdict."""

    adapter: AdapterName
    by: str
    alias: str
    version: str


GateQuestion = SetGate | RemoveGate | ShowGates | CheckVersion
