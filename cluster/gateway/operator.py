"""What an operator may do to a cluster, as the admin service sees it; and the decisions, numbered and handed out."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.gateway.cluster_state import ClusterState, DecisionCounts
from core.decisions import Decision, DecisionKind
from core.ids import NodeId
from core.mix import Mix

MAX_DECISIONS = 256


@dataclass(frozen=True, slots=True)
class SlotView:
    """A place for a node. `mix` is what its node accepts, or the next one will; `node` is None while there is none.

    `host` is the address of its node's host, empty without one.
    """

    name: str
    state: str
    mix: Mix
    node: NodeId | None
    num_deaths: int
    is_overridden: bool
    is_drained: bool
    host: str = ""


class Operator(Protocol):
    """A running cluster, for those who may change it. Slots are known by name."""

    def shown(self) -> ClusterState:
        """The cluster now."""

    def slots(self) -> tuple[SlotView, ...]:
        """Every slot now."""

    def controller(self) -> str:
        """`on`, `advise` or `off`."""

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        """Sets mixes by hand; the controller leaves these slots alone from now on."""

    def lift_mixes(self, slots: Iterable[str]) -> None:
        """Gives slots back to the controller; without one they get the mixes they began with."""

    async def drain(self, slot: str, for_restart: bool = False) -> int:
        """Closes a slot and waits until its node is empty; how many attempts were left.

        `for_restart`: the node after this one has the slot's mix again.
        """

    async def flush(self) -> Mapping[str, int | None]:
        """Has every node forget the KV that nobody uses; how many blocks each slot's freed, None: it did not say."""

    def watch(self, num_past: int) -> AsyncIterator[tuple[int, Decision]]:
        """Numbered decisions, the last `num_past` first and then each as it is made."""


class DecisionFeed:
    """The decisions of this process.

    Owns: the last ones, with their numbers, how many of each kind there were, and who waits for more. A watcher that is
    behind misses the oldest.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, Decision]] = deque(maxlen=MAX_DECISIONS)
        self._num_made = 0
        self._kinds: Counter[str] = Counter()
        self._mix_changes: Counter[tuple[str, str]] = Counter()
        self._is_infeasible = False
        self._news = asyncio.Event()

    @property
    def recent(self) -> tuple[tuple[int, Decision], ...]:
        """The last ones, oldest first."""
        return tuple(self._recent)

    @property
    def counts(self) -> DecisionCounts:
        """All of them so far."""
        changes = tuple((was, becomes, number) for (was, becomes), number in sorted(self._mix_changes.items()))
        return DecisionCounts(tuple(sorted(self._kinds.items())), changes, self._is_infeasible)

    def put(self, decision: Decision) -> None:
        """One was made."""
        self._count(decision)
        self._num_made += 1
        self._recent.append((self._num_made, decision))
        self._news.set()
        self._news = asyncio.Event()

    def _count(self, decision: Decision) -> None:
        self._kinds[decision.kind.value] += 1
        if decision.kind in (DecisionKind.INFEASIBLE, DecisionKind.FEASIBLE):
            self._is_infeasible = decision.kind is DecisionKind.INFEASIBLE
        if decision.kind is not DecisionKind.ADVICE:
            self._mix_changes.update((step.was.role, step.becomes.role) for step in decision.steps)

    async def watch(self, num_past: int) -> AsyncIterator[tuple[int, Decision]]:
        """The last `num_past`, then each as it is made; without end."""
        told = max(0, self._num_made - num_past)
        while True:
            news = self._news
            for number, decision in self.recent:
                if number > told:
                    told = number
                    yield number, decision
            if told == self._num_made:
                await news.wait()
