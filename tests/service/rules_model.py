"""The rules of names, versions, gates, splits, pins and keys, as plain Python: what `test_rules.py` compares with.

Each change answers with the status that the server has to give; one that is not 200 changes nothing.
"""

from dataclasses import dataclass, field


@dataclass
class Split:
    """How requests for an alias are shared."""

    weights: dict[str, int]
    sticky: bool
    shadow: str | None
    given: dict[str, str] = field(default_factory=dict)
    """{user: digest} of what users have got so far."""

    @property
    def named(self) -> set[str]:
        return {*self.weights, *filter(None, [self.shadow])}

    @property
    def sent(self) -> set[str]:
        """The versions that get requests."""
        return {digest for digest, weight in self.weights.items() if weight > 0}


@dataclass
class Held:
    """What the rules know of an adapter."""

    versions: list[str] = field(default_factory=list)
    """Live, in the order of publishing."""
    aliases: dict[str, str] = field(default_factory=dict)
    past: dict[str, list[str]] = field(default_factory=dict)
    grantees: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    gates: dict[str, set[str]] = field(default_factory=dict)
    """{alias that has a gate: versions that have passed since it was set}."""
    splits: dict[str, Split] = field(default_factory=dict)

    # Reading

    def meant(self, version: str | None, alias: str) -> str | None:
        """What a version, or else an alias, stands for."""
        return self.aliases.get(alias) if version is None else version if version in self.versions else None

    def answering(self, version: str | None, alias: str, user: str | None) -> set[str]:
        """The versions that a request may be answered by; none if there is nothing of that name."""
        own = self.meant(version, alias)
        split = self.splits.get(alias) if version is None else None
        if own is None or split is None:
            return {own} if own is not None else set()
        return {split.given[user]} if user in split.given else split.sent

    # Moving aliases

    def publish(self, alias: str, digest: str, *, sound: bool) -> None:
        """``sound`` says whether it passes a gate."""
        if digest not in self.versions:
            self.versions.append(digest)
        if self._admitted(alias, digest, sound):
            self._point(alias, digest)

    def promote(self, alias: str, digest: str, *, sound: bool, force: bool) -> int:
        if digest not in self.versions:
            return 404
        if not self._admitted(alias, digest, sound) and not force:
            return 409
        self._point(alias, digest)
        return 200

    def roll_back(self, alias: str) -> int:
        past = self.past.get(alias, [])
        depth = self._last(alias, {*self.versions} - {self.aliases.get(alias, "")})
        if alias not in self.aliases or depth is None:
            return 404
        self.aliases[alias] = past[depth]
        del past[depth:]
        self.splits.pop(alias, None)
        return 200

    def remove_alias(self, alias: str) -> int:
        if alias == "latest":
            return 409
        if self.aliases.pop(alias, None) is None:
            return 404
        for about in (self.past, self.splits):
            about.pop(alias, None)
        return 200

    # Deleting

    def delete_version(self, digest: str) -> int:
        if digest not in self.versions:
            return 404
        aliases = {alias for alias, at in self.aliases.items() if at == digest}
        if digest in self.pinned or aliases - {"latest"} or any(digest in one.named for one in self.splits.values()):
            return 409
        rest = [other for other in self.versions if other != digest]
        if "latest" in aliases:
            if rest and "latest" in self.gates:
                depth = self._last("latest", set(rest))
                if depth is None:
                    return 409
                rest = [self.past["latest"][depth]]
                del self.past["latest"][depth:]
            self.splits.pop("latest", None)
            del self.aliases["latest"]
            if rest:
                self.aliases["latest"] = rest[-1]
        self.versions.remove(digest)
        self.past = {alias: [at for at in past if at != digest] for alias, past in self.past.items()}
        return 200

    @property
    def may_be_deleted(self) -> bool:
        return not self.pinned and not self.gates

    # Pins, gates, splits

    def set_pinned(self, digest: str, pinned: bool) -> int:
        if digest not in self.versions:
            return 404
        (self.pinned.add if pinned else self.pinned.discard)(digest)
        return 200

    def set_gate(self, alias: str) -> None:
        """What is set demands anew: nothing has passed yet, so nothing but the alias's own version gets requests."""
        self.gates[alias] = set()
        split = self.splits.get(alias)
        if split is not None and split.sent - {self.aliases[alias]}:
            del self.splits[alias]

    def remove_gate(self, alias: str) -> int:
        return 404 if self.gates.pop(alias, None) is None else 200

    def check(self, alias: str, digest: str, *, sound: bool) -> int:
        if digest not in self.versions:
            return 404
        self._admitted(alias, digest, sound)
        return 200

    def split(self, alias: str, split: Split) -> int:
        if alias not in self.aliases or not split.named <= set(self.versions):
            return 404
        if alias in self.gates and split.sent - {self.aliases[alias]} - self.gates[alias]:
            return 409
        self.splits[alias] = split
        return 200

    def end_split(self, alias: str) -> int:
        return 404 if self.splits.pop(alias, None) is None else 200

    # Inside

    def _admitted(self, alias: str, digest: str, sound: bool) -> bool:
        """Whether an alias may be moved to a version; a gate remembers what it found."""
        if alias in self.gates:
            (self.gates[alias].add if sound else self.gates[alias].discard)(digest)
        return alias not in self.gates or sound

    def _point(self, alias: str, digest: str) -> None:
        before = self.aliases.get(alias)
        if before is not None and before != digest:
            self.past.setdefault(alias, []).append(before)
        self.aliases[alias] = digest
        self.splits.pop(alias, None)

    def _last(self, alias: str, among: set[str]) -> int | None:
        """Where in an alias's past the last of some versions is."""
        past = self.past.get(alias, [])
        return next((depth for depth in reversed(range(len(past))) if past[depth] in among), None)


@dataclass
class Key:
    """A key, and what it is for."""

    secret: str
    key_id: str
    tenant: str
    scopes: frozenset[str]
    alive: bool = True
    rotated: bool = False

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes
