"""Requests split between the versions of an adapter: which one gets a request, what came of it, who is taken out.

Which adapters have a split at all is kept in memory and read anew every second, so that the others' requests pay
nothing for it; the rules themselves are read for every request that they concern, so that a change holds at once.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from adapters.database.database import Database
from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.manifest import Manifest, read_manifest
from adapters.names import AdapterName, AdapterRef
from adapters.registry import Registry
from adapters.splits import Rules, Split, end_splits, put_split, read_split, read_splits, take_out
from adapters.store import Store, Version
from service.back_out import breaches
from service.comparison import Comparison, Pair, Part
from service.errors import AdapterUnknownError, GateFailedError, InvalidRequestError, NotFoundError, describe
from service.gate.verdict import unproven
from service.messages import Classify, Generate, Work
from service.priority import give_way
from service.split_messages import EndSplit, SetSplit, Shown, ShowSplit, SplitQuestion
from service.splitting import choose, resolved

PERIOD_S = 1.0
THRESHOLD = 0.5
"""From which probability on a label is taken to hold where the request does not say."""

logger = logging.getLogger(__name__)


class SplitNotFoundError(NotFoundError):
    """The alias's requests are not split."""

    code = "split_not_found"

    def __init__(self, name: AdapterName, alias: str) -> None:
        super().__init__(f"Requests for {name}:{alias} are not split between versions.", param="alias")


@dataclass(frozen=True, slots=True)
class Routed:
    """What a request runs under; None is the base."""

    version: Version | None
    part: Part | None = None
    """What it counts as, if requests for its name are split."""


class Splits:
    """The splits of a store, as one engine process follows them; any thread may ask.

    Args:
        store: Where versions are.
        draw: A number in [0, 1), for requests that no field decides for.
    """

    def __init__(self, store: Store, draw: Callable[[], float] = random.random) -> None:
        self._store = store
        self._draw = draw
        self._known: dict[tuple[AdapterName, str], Split] = {}
        self.comparison = Comparison()
        self.back_outs = 0
        self._stopped = threading.Event()
        self._refreshing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="splits", daemon=True)

    def __bool__(self) -> bool:
        """Whether there are any, as of a second ago at most."""
        return bool(self._known)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────

    def concerns(self, name: AdapterName, alias: str) -> bool:
        """Whether requests for an alias are split, as of a second ago at most."""
        return (name, alias) in self._known

    def route(self, own: Version, alias: str, work: Work) -> Routed:
        """The version that a request for an alias gets, which points at ``own``."""
        split = read_split(self._store.database, own.name, alias)
        if split is None:
            return Routed(own)
        part = Part(split, choose(split, work.sticky, self._draw))
        try:
            version = own if part.digest == own.digest else self.version(own.name, part.digest)
        except Exception as error:  # that it cannot be found speaks against it, whatever its client is told
            self.comparison.failed(part, describe(error).code, 500)
            raise
        if split.rules.shadow not in (None, part.digest) and _comparable(work):
            part.pair, part.labels = Pair(), labels_of(version.manifest, work)
        return Routed(version, part)

    def shadow_of(self, part: Part) -> Part | None:
        """What a request counts as when it is run once more; None if it is not."""
        digest = part.split.rules.shadow
        return None if digest in (None, part.digest) else Part(part.split, digest, shadow=True, pair=part.pair)

    def version(self, name: AdapterName, digest: str) -> Version:
        """One version of an adapter."""
        return self._store.resolve(AdapterRef(name, version=digest))

    # ── questions ─────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, question: SplitQuestion) -> Shown | None:
        """Answer a question.

        Raises:
            AdapterUnknownError: There is no such adapter.
            SplitNotFoundError: The alias's requests are not split.
            InvalidRequestError: The rules do not fit the versions.
        """
        name, alias = question.adapter, question.alias
        database = self._store.rows()
        if database is None:
            raise AdapterUnknownError(str(name))
        try:
            if isinstance(question, ShowSplit):
                self._store.aliases(name)
            else:
                self._change(database, question)
                self.refresh()
        except AdapterNotFoundError as error:
            if error.key == "name":
                raise AdapterUnknownError(str(name)) from error
            raise
        return None if isinstance(question, EndSplit) else self._show(database, name, alias)

    def _change(self, database: Database, question: SetSplit | EndSplit) -> None:
        name, alias, by = question.adapter, question.alias, question.by
        with Registry(database).changing(name) as (connection, pointers):
            if isinstance(question, SetSplit):
                rules = resolved(question.rules, name, alias, pointers)
                own = pointers.aliases[alias]
                asked = [digest for digest, weight in rules.weights.items() if weight > 0 and digest != own]
                if lacking := unproven(connection, name, alias, asked):
                    raise GateFailedError(
                        f"{name}@{lacking[0][:12]}", alias, ["it has not passed since the gate was set: check it first"]
                    )
                self._check_tasks(name, pointers.aliases[alias], rules)
                put_split(connection, name, alias, rules, by)
            elif not end_splits(connection, name, by, "asked", alias):
                raise SplitNotFoundError(name, alias)

    def _check_tasks(self, name: AdapterName, own: str, rules: Rules) -> None:
        task = self._task(name, own)
        for digest in filter(None, (*rules.weights, rules.shadow)):
            if self._task(name, digest) != task:
                message = f"{digest[:12]} is for another task ({self._task(name, digest)}) than {own[:12]} ({task})."
                raise InvalidRequestError(message, param="shadow" if digest == rules.shadow else "versions")

    def _task(self, name: AdapterName, digest: str) -> str:
        return read_manifest(self._store.folder_of(name, digest)).task

    def _show(self, database: Database, name: AdapterName, alias: str) -> Shown:
        split = read_split(database, name, alias)
        if split is None:
            raise SplitNotFoundError(name, alias)
        return Shown(split, self.comparison.rows(split))

    # ── watching ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Learn which splits there are, and watch them from now on."""
        self._watch()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Learn which splits there are."""
        with self._refreshing:
            database = self._store.rows()
            found = [] if database is None else read_splits(database)
            self.comparison.keep(found)
            self._known = {(split.name, split.alias): split for split in found}

    def judge(self) -> None:
        """Take out the versions that did too badly."""
        for split in list(self._known.values()):
            if split.rules.back_out is None:
                continue
            for digest, figures in breaches(split, self.comparison.rows(split), time.monotonic()):
                self._take_out(split, digest, figures)

    def _take_out(self, split: Split, digest: str, figures: dict[str, Any]) -> None:
        with Registry(self._store.database).changing(split.name) as (connection, _):
            done = take_out(connection, split, digest, figures)
        if done:
            self.back_outs += 1
            told = ", ".join(f"{name} {value}" for name, value in figures.items())
            logger.warning("%s sends no more requests to %s (%s)", split.shown, digest[:12], told)

    def _run(self) -> None:
        give_way()
        while not self._stopped.wait(PERIOD_S):
            self._watch()

    def _watch(self) -> None:
        try:
            self.refresh()
            self.judge()
        except AdapterError as error:
            logger.warning("the splits between versions cannot be looked after; it will be tried again: %s", error)
        except Exception:
            logger.exception("looking after the splits between versions met an error of its own")


def _comparable(work: Work) -> bool:
    """Whether two versions can be expected to answer a request alike: nothing is drawn."""
    return isinstance(work, Classify) or (isinstance(work, Generate) and work.sampling.greedy)


def labels_of(manifest: Manifest, work: Work) -> Callable[[tuple[float, ...]], Hashable] | None:
    """What the probabilities that a version gives say of a text: its label, or all that hold."""
    if not isinstance(work, Classify) or manifest.labels is None:
        return None
    names = manifest.labels
    threshold = THRESHOLD if work.threshold is None else work.threshold
    if manifest.multi_label:
        return lambda values: frozenset(name for name, value in zip(names, values, strict=True) if value >= threshold)
    return lambda values: names[max(range(len(values)), key=values.__getitem__)]
