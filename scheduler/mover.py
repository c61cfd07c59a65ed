"""Rows on the way from one node to another, and nodes that are to be empty."""

from collections.abc import Mapping
from dataclasses import replace

from core.commands import Command, Tell
from core.events import AttemptEnd, AttemptFinished, Drained, Dropped, MigrateAsked, Stayed
from core.ids import OPERATOR, AttemptId, NodeId, RequestId, request_of
from core.lifecycle import RequestState
from scheduler.admission import whole_blocks
from scheduler.config import SchedulerConfig
from scheduler.flight import Flight
from scheduler.moves import Leaver, Move, move_of, proposed_moves
from scheduler.view import Booking, ClusterView


class Mover:
    """Asks nodes to migrate rows, books for them where they go, and knows where they are meanwhile.

    Owns: the drains, the `move` of every flight, and `num_asked`, which only rises.
    Invariant: a move is over by the word of the node that it leads away from; until then a loss elsewhere is no loss.
    """

    def __init__(self, config: SchedulerConfig, view: ClusterView, flights: Mapping[RequestId, Flight]) -> None:
        self._config = config
        self._view = view
        self._flights = flights
        self._drains: dict[NodeId, float] = {}
        self.num_asked = 0

    # ── drains ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, node: NodeId, now: float) -> list[Command]:
        """A node takes nothing new from now on; that it is empty will be told."""
        view = self._view.nodes.get(node)
        if view is None:
            return [Tell(OPERATOR, Drained(node, 0))]
        view.base_mix = replace(view.base_mix, accepts_prefill=False, accepts_decode=False)
        self._drains[node] = now
        return []

    def end_drain(self, node: NodeId, num_left: int) -> list[Command]:
        """The node is gone with so many attempts, or the operator wants something else of it."""
        return [Tell(OPERATOR, Drained(node, num_left))] if self._drains.pop(node, None) is not None else []

    # ── what became of a move ────────────────────────────────────────────────────────────────────────────────────────

    def is_moving_to(self, flight: Flight, node: NodeId) -> bool:
        """Whether the flight's row is on its way there: what is lost there may still be where it came from."""
        return flight.move is not None and flight.move.to == node

    def is_lost_by(self, flight: Flight, event: AttemptFinished) -> bool:
        """The row has left the node that it should leave; whether it is nowhere then: the other one had it, no more."""
        move = flight.move
        if move is None or move.source != event.node:
            return False
        flight.move = None
        if event.end is not AttemptEnd.HANDED_OFF or flight.unheld_since is not None:
            return False
        flight.follow(move.to)
        return move.to not in self._view.nodes_of(move.attempt)

    def stayed(self, event: Stayed, now: float) -> list[Command] | None:
        """The row is where it was: its promise elsewhere goes back. None where no such move is known."""
        flight = self._flights.get(request_of(event.attempt))
        move = flight.move if flight is not None else None
        if flight is None or move is None or (move.attempt, move.source) != (event.attempt, event.node):
            return None
        flight.move, flight.moves_at = None, now + self._config.timers.tick_s
        if not event.was_offered:
            self._view.release(move.attempt, move.to)
            return []
        flight.shunned |= {move.to}
        is_booked = move.to in self._view.nodes_of(move.attempt)
        return [Tell(move.to, Dropped(move.attempt))] if is_booked else []

    # ── the next ones ────────────────────────────────────────────────────────────────────────────────────────────────

    def next_moves(self, now: float) -> list[Command]:
        """Away from nodes that drain, a few at a time; empty ones are reported, and those whose time is over."""
        commands: list[Command] = []
        for node, since in list(self._drains.items()):
            view = self._view.nodes[node]
            if not view.bookings or now - since > self._config.timers.drain_s:
                del self._drains[node]
                commands.append(Tell(OPERATOR, Drained(node, len(view.bookings))))
                continue
            num_free = self._config.max_moves - self._num_moving_from(node)
            for attempt, booking in [each for each in view.bookings.items() if each[1].num_rows]:
                flight = self._movable(attempt, now)
                if num_free <= 0 or flight is None:
                    continue
                move = move_of(self._leaver(flight, attempt, node, booking), self._view)
                if move is not None:
                    commands.append(self._ask(flight, move, booking, now))
                    num_free -= 1
        return commands

    def rebalance(self, now: float) -> list[Command]:
        """The moves that would even out the load; none where the hook is off."""
        gap = self._config.rebalance_gap
        if gap is None:
            return []
        commands: list[Command] = []
        for move in proposed_moves(self._view, gap, self._config.max_moves):
            flight, booking = self._movable(move.attempt, now), self._view.nodes[move.source].bookings[move.attempt]
            if flight is None or self._num_moving_from(move.source) >= self._config.max_moves:
                continue
            leaver = self._leaver(flight, move.attempt, move.source, booking)
            if move_of(leaver, self._view) == move:
                commands.append(self._ask(flight, move, booking, now))
        return commands

    def _movable(self, attempt: AttemptId, now: float) -> Flight | None:
        flight = self._flights.get(request_of(attempt))
        if flight is None or flight.state is not RequestState.ROUTED or flight.attempt != attempt:
            return None
        is_free = flight.move is None and flight.unheld_since is None and flight.moves_at <= now
        return flight if is_free else None

    def _leaver(self, flight: Flight, attempt: AttemptId, source: NodeId, booking: Booking) -> Leaver:
        return Leaver(attempt, source, booking, whole_blocks(flight, self._view), flight.shunned, flight.avoid)

    def _ask(self, flight: Flight, move: Move, booking: Booking, now: float) -> Tell:
        """Book at the target first, as much as at the source."""
        self._view.book(move.attempt, move.to, replace(booking, prefill_tokens=0, pairs=0.0, prompt=b""), now)
        flight.move = move
        self.num_asked += 1
        return Tell(move.source, MigrateAsked(move.attempt, move.to))

    def _num_moving_from(self, node: NodeId) -> int:
        attempts = self._view.nodes[node].bookings
        flights = (self._flights.get(request_of(attempt)) for attempt in attempts)
        return sum(f is not None and f.move is not None and f.move.source == node for f in flights)
