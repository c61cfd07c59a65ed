"""Which rows go on at another node, and where. Pure functions of what the scheduler knows."""

from dataclasses import dataclass

from core.ids import AttemptId, NodeId
from scheduler.view import Booking, ClusterView, NodeView


@dataclass(frozen=True, slots=True)
class Move:
    """A row that decodes at `source` is to go on at `to`."""

    attempt: AttemptId
    source: NodeId
    to: NodeId


@dataclass(frozen=True, slots=True)
class Leaver:
    """A row that should go, with what it has booked where it is. The whole answer needs `whole_blocks`; `shunned` nodes
    did not take it before, on those to `avoid` an earlier attempt failed."""

    attempt: AttemptId
    source: NodeId
    booking: Booking
    whole_blocks: int
    shunned: frozenset[NodeId] = frozenset()
    avoid: frozenset[NodeId] = frozenset()


def move_of(leaver: Leaver, view: ClusterView) -> Move | None:
    """To the emptiest node that decodes and has room for it; None where there is none."""
    layout = view.nodes[leaver.source].spec.layout
    room = [
        node
        for node in view.nodes.values()
        if node.mix.accepts_decode and node.spec.layout == layout and _has_room(node, leaver)
    ]
    if not room:
        return None
    target = min(room, key=lambda node: (node.node in leaver.avoid, node.share_booked, node.node))
    return Move(leaver.attempt, leaver.source, target.node)


def proposed_moves(view: ClusterView, min_gap: float, max_moves: int) -> tuple[Move, ...]:
    """Moves that even out how much of each decode node's blocks is promised: from the fullest to the emptiest one.

    Only where the two shares differ by more than `min_gap`, and no further than to where they meet.
    """
    nodes = sorted((n for n in view.nodes.values() if n.mix.accepts_decode), key=lambda n: (n.share_booked, n.node))
    if not nodes or nodes[-1].share_booked - nodes[0].share_booked <= min_gap:
        return ()
    to, source = nodes[0], nodes[-1]
    if to.spec.layout != source.spec.layout:
        return ()
    moves: list[Move] = []
    low, high = to.share_booked, source.share_booked
    for attempt, booking in reversed(source.bookings.items()):
        after = low + booking.blocks / to.spec.num_blocks, high - booking.blocks / source.spec.num_blocks
        if len(moves) < max_moves and booking.num_rows and attempt not in to.bookings and after[0] <= after[1]:
            low, high = after
            moves.append(Move(attempt, source.node, to.node))
    return tuple(moves)


def _has_room(node: NodeView, leaver: Leaver) -> bool:
    if node.node == leaver.source or node.node in leaver.shunned or leaver.attempt in node.bookings:
        return False
    fits = node.num_unbooked >= leaver.booking.blocks and node.spec.num_blocks >= leaver.whole_blocks
    return fits and node.num_rows_left > 0
