"""What the scheduler knows of the nodes: what it has in flight there (truth), what they last said (belief, with its
age)."""

from core.costs import NodeCosts
from core.ids import AttemptId, LayoutId, NodeId
from core.mix import NodeSpec
from core.stats import NodeStats
from scheduler.config import SchedulerConfig
from scheduler.lengths import LengthModel
from scheduler.node_view import Booking, NodeView
from scheduler.predictor import Predictor
from scheduler.prefix_index import PrefixIndex, stride_of
from scheduler.ranking import Ranking

__all__ = ["Booking", "ClusterView", "NodeView"]

Alike = tuple[LayoutId, NodeCosts | None]
"""What nodes have in common that are compared by nothing but their queues: layout, and the prices they were told."""


class ClusterView:
    """All nodes that may be used. `block_size` is the smallest one, as of the last join.

    Owns: the one ledger of credits: what every attempt has booked at every node until that node reports it gone. Also
    what predicts, what was learned of answers' lengths, who should hold which prefix, and the nodes in order: those
    that may prefill by when their queue will be done, `prefills`, and those that may decode by the time of their next
    step, `decodes`. `era` counts the times at which nodes were told other mixes.
    Both orders are as of the last `refresh`, which puts right those that changed since.
    """

    def __init__(self, config: SchedulerConfig = SchedulerConfig()) -> None:  # noqa: B008 - frozen
        self.nodes: dict[NodeId, NodeView] = {}
        self.block_size = 16
        self.lengths = LengthModel(config.expected_output_tokens)
        self.era = 0
        self.predictor = Predictor(config, self)
        self.prefixes = PrefixIndex()
        self.prefills: dict[Alike, Ranking] = {}
        self.decodes: dict[LayoutId, Ranking] = {}
        self.by_bit: dict[int, NodeView] = {}
        self._changed: dict[NodeId, NodeView] = {}
        self._where: dict[AttemptId, set[NodeId]] = {}
        self._accepts: dict[NodeId, tuple[bool, bool]] = {}
        self._largest: int | None = None

    def join(self, node: NodeId, spec: NodeSpec) -> None:
        """A new node, with the mix it was started with."""
        bit = self.prefixes.join(node, spec.num_blocks // stride_of(spec.kv.block_size))
        self.nodes[node] = self.by_bit[bit] = NodeView(node, spec, bit, self._changed)
        self.block_size = min(view.spec.kv.block_size for view in self.nodes.values())

    def lose(self, node: NodeId) -> list[AttemptId]:
        """The node is gone with all that was booked there; returns whose it was."""
        view = self.nodes[node]
        lost = list(view.bookings)
        for attempt in lost:
            self.release(attempt, node)
        self._unrank(view)
        self._changed.pop(node, None)
        self.prefixes.lose(node)
        del self.nodes[node], self.by_bit[view.bit]
        self._accepts.pop(node, None)
        self._largest = None
        return lost

    def book(self, attempt: AttemptId, node: NodeId, booking: Booking, now: float) -> None:
        """Promise blocks and prefill work."""
        view = self.nodes[node]
        assert attempt not in view.bookings, f"{attempt} is booked twice at {node}"
        view.book(attempt, booking, now)
        self._where.setdefault(attempt, set()).add(node)

    def release(self, attempt: AttemptId, node: NodeId) -> bool:
        """Give back what the attempt had booked there; False where it had nothing."""
        view = self.nodes.get(node)
        if view is None or not view.release(attempt):
            return False
        where = self._where[attempt]
        where.discard(node)
        if not where:
            del self._where[attempt]
        return True

    def believe(self, node: NodeId, stats: NodeStats, now: float) -> None:
        """What a node says of itself."""
        view = self.nodes.get(node)
        if view is not None:
            view.believe(stats, now)

    def flush(self, node: NodeId) -> None:
        """The node has forgotten the KV that nobody used."""
        if node in self.nodes:
            self.prefixes.empty(node)

    def refresh(self) -> None:
        """Bring the orders up to date. Cheap where little has changed; called by whoever is about to choose."""
        if not self._changed:
            return
        mean_output = self.lengths.mean
        for view in self._changed.values():
            view.settle(mean_output)
            self._rank(view)
        self._changed.clear()

    def nodes_of(self, attempt: AttemptId) -> tuple[NodeId, ...]:
        """Where the attempt has something booked, in a fixed order."""
        return tuple(sorted(self._where.get(attempt, ())))

    @property
    def num_booked_attempts(self) -> int:
        """Attempts with anything booked anywhere."""
        return len(self._where)

    @property
    def largest_request_blocks(self) -> int:
        """Blocks of the largest request that can be served to its end; 0 where a phase has no node.

        The prefill nodes count in full: a request that resumes is computed again, with all that it has answered.
        """
        self.refresh()
        if self._largest is None:
            views = self.nodes.values()
            prefill = max((view.spec.num_blocks for view in views if view.mix.accepts_prefill), default=0)
            decode = max((view.spec.num_blocks for view in views if view.mix.accepts_decode), default=0)
            self._largest = min(prefill, decode)
        return self._largest

    def check(self) -> None:
        """Asserts that sums are those of the bookings, that nothing is promised twice, and that orders are whole."""
        where: dict[AttemptId, set[NodeId]] = {}
        for node, view in self.nodes.items():
            view.check()
            for attempt in view.bookings:
                where.setdefault(attempt, set()).add(node)
        assert where == self._where, "where attempts are booked"
        self.prefixes.check()
        self.refresh()
        ranked = [entry[1] for ranking in self.prefills.values() for entry in ranking.entries]
        may = [view.node for view in self.nodes.values() if view.mix.accepts_prefill and view.num_unbooked > 0]
        assert sorted(ranked) == sorted(may), "the order of those that prefill"

    def _rank(self, view: NodeView) -> None:
        """Where it belongs; a node that is full is in no order, so nobody looks at it."""
        layout, mix = view.spec.layout, view.mix
        accepts = mix.accepts_prefill, mix.accepts_decode
        if self._accepts.get(view.node) != accepts:
            self._accepts[view.node], self._largest = accepts, None
        prefills = self.prefills.setdefault((layout, view.spec.costs), Ranking())
        if view.prefills:
            prefills.put(view, view.free_at)
        else:
            prefills.drop(view.node)
        decodes = self.decodes.setdefault(layout, Ranking())
        if view.decodes:
            decodes.put(view, view.slowed(view.decode_s + view.row_s, view.recent_at))
        else:
            decodes.drop(view.node)

    def _unrank(self, view: NodeView) -> None:
        self.prefills.get((view.spec.layout, view.spec.costs), Ranking()).drop(view.node)
        self.decodes.get(view.spec.layout, Ranking()).drop(view.node)
