"""How far the answers under way are, by what nodes count: no node tells it of a single answer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from core.ids import NodeId, RequestId
from core.stats import NodeStats
from scheduler.flight import Flight
from scheduler.view import ClusterView


@dataclass(slots=True)
class Progress:
    """Of the rows that are booked at a node, as many as it says decode: those that came first. Each gets one token in
    every step with rows.

    Owns: since which step of which node each answer is seen to decode, and how many tokens it had before it moved.
    """

    _since: dict[RequestId, tuple[NodeId, int, int]] = field(default_factory=dict)

    def answers(self, flights: Iterable[Flight], view: ClusterView) -> Iterator[tuple[str, int, int]]:
        """Tenant, class and tokens so far of each answer that is seen to decode."""
        since, self._since = self._since, {}
        left = {node: each.stats.running_rows for node, each in view.nodes.items() if each.stats is not None}
        for flight in flights:
            if flight.attempt is None or flight.route is None or not left.get(flight.route.decode):
                continue
            node, request = flight.route.decode, flight.request
            stats = view.nodes[node].stats
            assert stats is not None, "it has rows by its stats"
            left[node] -= 1
            was, begun, before = since.get(request.id, (node, _steps(stats), 0))
            if was != node:
                before, begun = self._moved(before, begun, view, was), _steps(stats)
            self._since[request.id] = node, begun, before
            num_tokens = before + _steps(stats) - begun
            if num_tokens > 0:
                yield request.tenant, request.priority, min(num_tokens, request.sampling.max_tokens)

    def _moved(self, before: int, begun: int, view: ClusterView, was: NodeId) -> int:
        """Tokens of a row that runs on elsewhere, as far as is known."""
        old = view.nodes.get(was)
        return before + (_steps(old.stats) - begun if old is not None and old.stats is not None else 0)


def _steps(stats: NodeStats) -> int:
    """Steps with rows so far."""
    return stats.work.num_decode_steps + stats.work.num_mixed_steps
