"""What the scheduler knows of the nodes: what it has in flight there (truth), what they last said (belief, with its
age)."""

from collections import Counter
from dataclasses import dataclass, field

from core.ids import AttemptId, NodeId
from core.mix import Mix, NodeSpec
from core.stats import NodeStats


@dataclass(frozen=True, slots=True)
class Booking:
    """What one attempt has booked at one node: blocks (credits), prompt tokens to be computed there, a decode row.

    `prompt` names the whole prompt that is computed there, or was and is still held; empty where that helps nobody. An
    attempt that finds its prompt booked there adds no tokens to be computed.
    """

    blocks: int
    prefill_tokens: int
    num_rows: int
    prompt: bytes = b""


@dataclass(slots=True)
class NodeView:
    """One node. `mix` is what it was last told; `base_mix` what it should do when every phase is covered.

    `prompts` counts those of its bookings: another attempt with an equal one computes only its last token there.
    """

    node: NodeId
    spec: NodeSpec
    base_mix: Mix
    mix: Mix
    bookings: dict[AttemptId, Booking] = field(default_factory=dict)
    prompts: Counter[bytes] = field(default_factory=Counter)
    booked_blocks: int = 0
    booked_tokens: int = 0
    booked_rows: int = 0
    stats: NodeStats | None = None
    tokens_since_stats: int = 0

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait there: what the node said last and what was sent since; at most what is booked.

        A booking lasts until the attempt is gone, long after its prompt was computed.
        """
        if self.stats is None:
            return self.booked_tokens
        return min(self.booked_tokens, self.stats.queued_tokens + self.tokens_since_stats)

    @property
    def num_rows_left(self) -> int:
        """Rows that may still be promised; more would only take turns."""
        return self.mix.max_decode_rows - self.booked_rows

    @property
    def num_unbooked(self) -> int:
        """Blocks that may still be promised."""
        return self.spec.num_blocks - self.booked_blocks

    @property
    def share_booked(self) -> float:
        """Share of the pool that is promised, 0 to 1."""
        return self.booked_blocks / self.spec.num_blocks


class ClusterView:
    """All nodes that may be used. `block_size` is the smallest one, as of the last join.

    Owns: the one ledger of credits: what every attempt has booked at every node until that node reports it gone.
    """

    def __init__(self) -> None:
        self.nodes: dict[NodeId, NodeView] = {}
        self.block_size = 16
        self._where: dict[AttemptId, set[NodeId]] = {}

    def join(self, node: NodeId, spec: NodeSpec) -> None:
        """A new node, with the mix it was started with."""
        self.nodes[node] = NodeView(node, spec, spec.mix, spec.mix)
        self.block_size = min(view.spec.kv.block_size for view in self.nodes.values())

    def lose(self, node: NodeId) -> list[AttemptId]:
        """The node is gone with all that was booked there; returns whose it was."""
        lost = list(self.nodes[node].bookings)
        for attempt in lost:
            self.release(attempt, node)
        del self.nodes[node]
        return lost

    def book(self, attempt: AttemptId, node: NodeId, booking: Booking) -> None:
        """Promise blocks and prefill work."""
        view = self.nodes[node]
        assert attempt not in view.bookings, f"{attempt} is booked twice at {node}"
        view.bookings[attempt] = booking
        view.booked_blocks += booking.blocks
        view.booked_tokens += booking.prefill_tokens
        view.booked_rows += booking.num_rows
        view.tokens_since_stats += booking.prefill_tokens
        if booking.prompt:
            view.prompts[booking.prompt] += 1
        self._where.setdefault(attempt, set()).add(node)

    def release(self, attempt: AttemptId, node: NodeId) -> bool:
        """Give back what the attempt had booked there; False where it had nothing."""
        view = self.nodes.get(node)
        booking = view.bookings.pop(attempt, None) if view else None
        if view is None or booking is None:
            return False
        view.booked_blocks -= booking.blocks
        view.booked_tokens -= booking.prefill_tokens
        view.booked_rows -= booking.num_rows
        if booking.prompt:
            view.prompts[booking.prompt] -= 1
            if not view.prompts[booking.prompt]:
                del view.prompts[booking.prompt]
        where = self._where[attempt]
        where.discard(node)
        if not where:
            del self._where[attempt]
        return True

    def believe(self, node: NodeId, stats: NodeStats) -> None:
        """What a node says of itself."""
        view = self.nodes.get(node)
        if view is not None:
            view.stats, view.tokens_since_stats = stats, 0

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
        views = self.nodes.values()
        prefill = max((view.spec.num_blocks for view in views if view.mix.accepts_prefill), default=0)
        decode = max((view.spec.num_blocks for view in views if view.mix.accepts_decode), default=0)
        return min(prefill, decode)

    def check(self) -> None:
        """Asserts that the sums are those of the bookings, and that nothing is promised twice."""
        where: dict[AttemptId, set[NodeId]] = {}
        for node, view in self.nodes.items():
            assert view.booked_blocks == sum(b.blocks for b in view.bookings.values()), f"booked at {node}"
            assert view.booked_tokens == sum(b.prefill_tokens for b in view.bookings.values()), f"tokens at {node}"
            assert view.booked_rows == sum(b.num_rows for b in view.bookings.values()), f"rows at {node}"
            assert view.prompts == Counter(b.prompt for b in view.bookings.values() if b.prompt), f"prompts at {node}"
            assert view.booked_blocks <= view.spec.num_blocks, f"{node} is promised {view.booked_blocks} blocks"
            for attempt in view.bookings:
                where.setdefault(attempt, set()).add(node)
        assert where == self._where, "where attempts are booked"
