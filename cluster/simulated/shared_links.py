"""KV on its way between simulated nodes: each node's card carries all its flows at once, and shares itself equally."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.simulated.loop import Loop
from core.ids import NodeId


@dataclass(frozen=True, slots=True)
class FleetLinks:
    """`bytes_per_s` is what one node's card carries each way, in sum over its flows. A fetch takes `latency_s` beside
    its bytes, any other message `message_s`."""

    bytes_per_s: float
    latency_s: float = 0.0002
    message_s: float = 0.0002


@dataclass(slots=True, eq=False)
class Flow:
    """One copy under way: `bytes_left` as of `updated_at`, at `rate` since."""

    source: NodeId
    target: NodeId
    bytes_left: float
    end: Callable[[bool], None]
    rate: float = 0.0
    updated_at: float = 0.0
    num_changes: int = 0


@dataclass(slots=True, eq=False)
class _Card:
    sending: dict[Flow, None] = field(default_factory=dict)
    receiving: dict[Flow, None] = field(default_factory=dict)


class SharedLinks:
    """Shares every card equally among its flows, each way by itself; a flow is as fast as its slower end.

    What one end leaves unused because the other is slower is not given to others: never faster than a real fair share.

    Owns: the flows. `peak_flows` is the most there were at a time.
    """

    def __init__(self, loop: Loop, links: FleetLinks) -> None:
        self._loop = loop
        self._links = links
        self._cards: dict[NodeId, _Card] = {}
        self.num_flows = 0
        self.peak_flows = 0

    def begin(self, source: NodeId, target: NodeId, num_bytes: float, end: Callable[[bool], None]) -> None:
        """Copy so many bytes; `end(True)` is called once they are there, `end(False)` where they never will be."""
        self.num_flows += 1
        self.peak_flows = max(self.peak_flows, self.num_flows)
        self._loop.after(self._links.latency_s, self._enter, Flow(source, target, num_bytes, end))

    def cut(self, node: NodeId) -> None:
        """A node is gone: its flows stop."""
        card = self._card(node)
        for flow in [*card.sending, *card.receiving]:
            self._leave(flow)
            flow.end(False)

    def _card(self, node: NodeId) -> _Card:
        card = self._cards.get(node)
        if card is None:
            card = self._cards[node] = _Card()
        return card

    def _enter(self, flow: Flow) -> None:
        self._card(flow.source).sending[flow] = None
        self._card(flow.target).receiving[flow] = None
        flow.updated_at = self._loop.now
        self._share(flow)

    def _leave(self, flow: Flow) -> None:
        self.num_flows -= 1
        flow.num_changes = -1
        self._card(flow.source).sending.pop(flow, None)
        self._card(flow.target).receiving.pop(flow, None)
        self._share(flow)

    def _share(self, changed: Flow) -> None:
        """New rates for all whose share the coming or going of one flow has changed."""
        sending, receiving = self._card(changed.source).sending, self._card(changed.target).receiving
        for flow in {**sending, **receiving}:
            out, into = len(self._card(flow.source).sending), len(self._card(flow.target).receiving)
            rate = self._links.bytes_per_s / max(out, into)
            if rate != flow.rate:
                self._change(flow, rate)

    def _change(self, flow: Flow, rate: float) -> None:
        now = self._loop.now
        flow.bytes_left = max(0.0, flow.bytes_left - (now - flow.updated_at) * flow.rate)
        flow.updated_at, flow.rate = now, rate
        flow.num_changes += 1
        self._loop.after(flow.bytes_left / rate, self._arrive, flow, flow.num_changes)

    def _arrive(self, flow: Flow, change: int) -> None:
        if flow.num_changes == change:
            self._leave(flow)
            flow.end(True)
