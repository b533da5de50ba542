"""Keeps the gates: lets a version through to an alias, or says what it lacks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

from adapters.errors import AdapterExistsError
from adapters.names import AdapterName, AdapterRef
from adapters.store import Store, Version
from service.errors import GateFailedError, RateLimitedError
from service.gate.checks import Checker
from service.gate.messages import CheckVersion, GateQuestion, RemoveGate, SetGate, ShowGates
from service.gate.rules import GateRules
from service.gate.verdict import Gates, Verdict


class Gatekeeper:
    """Checks versions for the aliases that demand something; any thread but the step thread may ask.

    Args:
        store: Where versions are.
        checker: Runs the checks.
    """

    def __init__(self, store: Store, checker: Checker) -> None:
        self._store = store
        self._checker = checker
        self._turns: defaultdict[str, Lock] = defaultdict(Lock)
        """One check of a tenant at a time: the threads are everybody's."""
        self.gates = Gates(store.database)

    def ask(self, question: GateQuestion) -> Any:
        """Answer a question.

        Raises:
            AdapterNotFoundError: There is no such adapter, or version.
        """
        name = question.adapter
        self._store.aliases(name)  # there is such an adapter
        match question:
            case SetGate(by=by, alias=alias, rules=rules):
                return self.gates.set(name, alias, rules, by=by)
            case RemoveGate(by=by, alias=alias):
                return self.gates.remove(name, alias, by=by)
            case ShowGates():
                return self.gates.all(name), self.gates.verdicts(name)
            case CheckVersion(by=by, alias=alias, version=version):
                return self.check(name, alias, version, by=by)

    def demanding(self, name: AdapterName, aliases: Sequence[str]) -> tuple[str, ...]:
        """Those of the aliases that have a gate."""
        rules = self.gates.all(name) if self._store.rows() is not None else {}
        return tuple(alias for alias in aliases if alias in rules)

    def check(self, name: AdapterName, alias: str, version: str, *, by: str) -> Verdict:
        """Check a version as the alias demands, without letting it through; what was found is kept with it.

        Raises:
            AdapterNotFoundError: There is no such version.
        """
        with self._turn(name.tenant):
            return self._checked(name, alias, version, by=by)

    def admit(self, name: AdapterName, alias: str, version: str, *, by: str, force: bool) -> Verdict | None:
        """Check a version if the alias demands something.

        Returns:
            What was found; None if nothing is demanded.

        Raises:
            GateFailedError: It lacks something, and ``force`` is not set.
        """
        rules = self.gates.rules(name, alias)
        if rules is None:
            return None
        with self._turn(name.tenant):
            verdict = self._verdict(name, alias, version, rules)
        self.gates.keep(name, verdict, by=by, forced=force)
        if not verdict.passed and not force:
            failed = [f"{finding.check}: {finding.detail}" for finding in verdict.findings if not finding.passed]
            raise GateFailedError(f"{name}@{verdict.digest[:12]}", alias, failed)
        return verdict

    def try_all(self, name: AdapterName, aliases: Sequence[str], version: str, *, by: str) -> tuple[Verdict, ...]:
        """Point those of the aliases that have a gate at a version as far as it passes; what was found is returned."""
        verdicts = []
        for alias in self.demanding(name, aliases):
            before = self._store.aliases(name).get(alias)
            with self._turns[name.tenant]:  # the version is published: it is worth waiting for
                verdict = self._checked(name, alias, version, by=by)
            if verdict.passed:
                # Checks take a while: a later one that was quicker stays.
                with suppress(AdapterExistsError):
                    self._store.set_alias(name, alias, version, by=by, admitted=True, unless_moved_from=(before,))
            verdicts.append(verdict)
        return tuple(verdicts)

    @contextmanager
    def _turn(self, tenant: str) -> Iterator[None]:
        turn = self._turns[tenant]
        if not turn.acquire(blocking=False):
            raise RateLimitedError("A version of this tenant is being checked: wait for the end of it.", retry_after=5)
        try:
            yield
        finally:
            turn.release()

    def _checked(self, name: AdapterName, alias: str, version: str, *, by: str) -> Verdict:
        verdict = self._verdict(name, alias, version, self.gates.rules(name, alias) or GateRules.model_validate({}))
        self.gates.keep(name, verdict, by=by, forced=False)
        return verdict

    def _verdict(self, name: AdapterName, alias: str, version: str, rules: GateRules) -> Verdict:
        checked = self._store.find(AdapterRef(name, version=version))
        return self._checker.check(checked, alias, rules, self._current(name, alias))

    def _current(self, name: AdapterName, alias: str) -> Version | None:
        digest = self._store.aliases(name).get(alias)
        return None if digest is None else self._store.find(AdapterRef(name, version=digest))
