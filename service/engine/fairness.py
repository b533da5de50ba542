"""Whose turn it is: service counted in tokens, after the virtual token counter of S-LoRA's authors.

"Fairness in Serving Large Language Models" (OSDI 2024): every tenant has a counter of the service that it got, divided
by its share, and the tenant with the smallest counter goes first. A tenant that had nothing waiting is lifted to the
smallest counter of those who wait, so that nobody saves up turns while idle; less a small credit, so that it may send
its share in bursts. Then the service of two tenants that always have something waiting never differs by more than about
what is computed at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from math import isfinite

PROMPT_WEIGHT = 1.0
"""Service that a token of a prompt is, or of a text to classify. Those found in the KV cache are not computed: 0."""
GENERATED_WEIGHT = 2.0
"""Service that a generated token is: the paper's weights, and about the ratio of what the two are sold for."""
CREDIT = 2048.0
"""Service that a tenant may be behind those who wait when it comes back: some requests' worth."""
TAKES_BELOW = 0.75
"""The part of its due of places up to which a tenant that wants more than its due takes them from others."""
IDLE_KEPT = 1024
"""Idle tenants whose counters are remembered, the largest."""


@dataclass(slots=True)
class _Account:
    """What is known of a tenant: its service divided by its share, its share, and how much it has waiting."""

    served: float
    share: float = 1.0
    waiting: int = 0


class TokenCounter:
    """The service that each tenant got. Knows tenants by name, and neither sequences nor time."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._last = _Account(0.0)
        """The tenant that was the last to have something waiting, for when nobody has."""
        self._floor = 0.0
        """What the smallest counter of those who wait has come to; a credit does not lower it."""

    def __getitem__(self, tenant: str) -> float:
        """A tenant's service divided by its share; where it would begin if nothing is known of it."""
        account = self._accounts.get(tenant)
        return self._level() if account is None else account.served

    def __len__(self) -> int:
        return len(self._accounts)

    def arrive(self, tenant: str, share: float) -> None:
        """One more sequence of a tenant waits; its share is this from now on."""
        account = self._account(tenant)
        if not account.waiting:
            account.served = max(account.served, self._level() - CREDIT)
        account.share = share
        account.waiting += 1

    def leave(self, tenant: str) -> None:
        """A waiting sequence of a tenant waits no more: it was admitted, or dropped."""
        account = self._accounts[tenant]
        account.waiting -= 1
        if not account.waiting:
            self._last = account
            self._forget()

    def charge(self, tenant: str, *, prompt: int = 0, generated: int = 0) -> None:
        """Count service that a tenant gets, in tokens; a negative count takes back what was not given after all."""
        account = self._account(tenant)
        account.served += (PROMPT_WEIGHT * prompt + GENERATED_WEIGHT * generated) / account.share

    def owing(self, tenant: str, held: Mapping[str, int], places: int) -> list[str]:
        """The tenants that have to give up one of their places to a tenant if it finds none, the most served first.

        A tenant's due is its share of the places among all that hold some or have something waiting, and at least one.
        Who wants no more than its due in all may take places up to it; who wants more, only while it holds clearly
        less; either only from who still holds its due afterwards and got no less service. So no place goes to and fro,
        and tenants that all have a backlog wait for what becomes free, which costs nothing.

        Args:
            tenant: Who wants a place, or got one.
            held: Places by tenant.
            places: How many there are.
        """
        there = {tenant, *held}
        for name in there:
            self._account(name)  # one that was idle may be forgotten meanwhile
        shares = {name: account.share for name, account in self._accounts.items() if account.waiting or name in there}
        total = sum(shares.values())

        def due(name: str) -> float:
            return max(1.0, places * shares[name] / total)

        has, wants = held.get(tenant, 0), self._accounts[tenant].waiting
        if has + wants > due(tenant) and has >= max(1.0, TAKES_BELOW * due(tenant)):
            return []
        found = (name for name in held if held[name] - 1 >= due(name) and self[name] >= self[tenant])
        return sorted(found, key=self.__getitem__, reverse=True)

    def _account(self, tenant: str) -> _Account:
        if tenant not in self._accounts:
            self._accounts[tenant] = _Account(self._level())
        return self._accounts[tenant]

    def _level(self) -> float:
        """Where a tenant begins: with the least served of those who wait, or with who waited last."""
        waiting = (account.served for account in self._accounts.values() if account.waiting)
        self._floor = max(self._floor, min(waiting, default=self._last.served))
        return self._floor

    def _forget(self) -> None:
        """Bound the memory: of many idle tenants those are forgotten whose counters a lift would soon reach."""
        if len(self._accounts) <= 2 * IDLE_KEPT:
            return
        idle = [name for name, account in self._accounts.items() if not account.waiting]
        kept = set(nlargest(IDLE_KEPT, idle, key=self.__getitem__))
        for name in idle:
            if name not in kept:
                del self._accounts[name]

    def check_integrity(self, waiting: Mapping[str, int]) -> None:
        """Assert that counters are numbers, and that exactly these sequences wait, by tenant."""
        counted = {name: account.waiting for name, account in self._accounts.items() if account.waiting}
        assert counted == waiting, f"{counted} are counted as waiting, {dict(waiting)} wait"
        for name, account in self._accounts.items():
            assert isfinite(account.served) and account.served >= 0, f"{name!r} was served {account.served}"
            assert account.share > 0, f"{name!r} has a share of {account.share}"
