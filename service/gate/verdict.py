"""What a gate found, and its rows in the database."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, select

from adapters.audit import record
from adapters.database.database import Database, insert, now
from adapters.database.schema import checks, gates
from adapters.names import AdapterName
from adapters.registry import Registry
from adapters.splits import end_splits, find_split
from service.gate.rules import GateRules

KEPT = 20
"""Verdicts of one version that are shown, the newest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check."""

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of all checks of a version for an alias."""

    digest: str
    alias: str
    at: datetime
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(finding.passed for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """As a reply shows it."""
        return {
            "digest": self.digest,
            "alias": self.alias,
            "at": self.at.isoformat(),
            "passed": self.passed,
            "findings": [asdict(finding) for finding in self.findings],
        }


class Gates:
    """The rules and verdicts in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rules(self, name: AdapterName, alias: str) -> GateRules | None:
        """What an alias demands; None if nothing."""
        return self.all(name).get(alias)

    def all(self, name: AdapterName) -> dict[str, GateRules]:
        """{alias: what it demands} of an adapter."""
        wanted = select(gates.c.alias, gates.c.rules).where(*_of(gates, name)).order_by(gates.c.alias)
        with self._database.reading() as connection:
            return {alias: GateRules.model_validate(rules) for alias, rules in connection.execute(wanted)}

    def set(self, name: AdapterName, alias: str, rules: GateRules, *, by: str) -> None:
        """Demand something from now on. Nothing has passed yet: a split that sends requests to others is ended."""
        plain = rules.model_dump(mode="json")
        row = {"tenant": name.tenant, "name": name.name, "alias": alias, "rules": plain, "changed_at": now()}
        with Registry(self._database).changing(name) as (connection, _):
            statement = insert(connection, gates).values(row)
            key = [column.name for column in gates.primary_key]
            changed = {"rules": plain, "changed_at": row["changed_at"]}
            connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
            record(connection, "set_gate", by, adapter=name, alias=alias)
            split = find_split(connection, name, alias)
            if split is not None and split.candidates:
                end_splits(connection, name, by, "set_gate", alias)

    def remove(self, name: AdapterName, alias: str, *, by: str) -> bool:
        """Demand nothing any more; False if nothing was demanded."""
        with self._database.writing() as connection:
            gone = connection.execute(gates.delete().where(*_of(gates, name), gates.c.alias == alias))
            if gone.rowcount:
                record(connection, "remove_gate", by, adapter=name, alias=alias)
            return bool(gone.rowcount)

    def keep(self, name: AdapterName, verdict: Verdict, *, by: str, forced: bool) -> None:
        """Store a verdict with its version; a promotion in spite of it is in the audit log."""
        row = {
            "tenant": name.tenant,
            "name": name.name,
            "digest": verdict.digest,
            "alias": verdict.alias,
            "at": verdict.at,
            "passed": verdict.passed,
            "findings": [asdict(finding) for finding in verdict.findings],
        }
        with Registry(self._database).changing(name) as (connection, _):
            connection.execute(checks.insert().values(row))
            action = "pass_gate" if verdict.passed else "force_gate" if forced else "fail_gate"
            failed = [finding.check for finding in verdict.findings if not finding.passed]
            about: Mapping[str, Any] = {"adapter": name, "digest": verdict.digest, "alias": verdict.alias}
            record(connection, action, by, **about, failed=failed)

    def verdicts(self, name: AdapterName, digest: str | None = None) -> list[Verdict]:
        """The newest verdicts of an adapter, or of one version of it, the newest first."""
        wanted = select(checks).where(*_of(checks, name)).order_by(checks.c.id.desc()).limit(KEPT)
        if digest is not None:
            wanted = wanted.where(checks.c.digest == digest)
        with self._database.reading() as connection:
            return [
                Verdict(row["digest"], row["alias"], row["at"], tuple(Finding(**one) for one in row["findings"]))
                for row in connection.execute(wanted).mappings()
            ]


def unproven(connection: Connection, name: AdapterName, alias: str, digests: Iterable[str]) -> list[str]:
    """Those of the versions that have not passed the alias's gate since it was set; none if it has no gate."""
    at_gate = and_(*_of(gates, name), gates.c.alias == alias)
    since = connection.execute(select(gates.c.changed_at).where(at_gate)).scalar()
    if since is None:
        return []
    wanted = select(checks.c.digest, checks.c.passed).order_by(checks.c.id)
    wanted = wanted.where(*_of(checks, name), checks.c.alias == alias, checks.c.at >= since)
    newest = dict(connection.execute(wanted).tuples().all())
    return [digest for digest in digests if not newest.get(digest, False)]


def _of(table: Any, name: AdapterName) -> tuple[Any, ...]:
    return table.c.tenant == name.tenant, table.c.name == name.name
