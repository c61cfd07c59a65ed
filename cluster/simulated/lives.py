"""Compares the moves of requests and attempts with `core.lifecycle`, and counts which event met which state."""

from collections.abc import Collection
from dataclasses import dataclass, field

from cluster.node import Node
from cluster.simulated.watch import Watch
from core.events import (
    DecodeEvent,
    Event,
    KVFailed,
    LeasesRenewed,
    MigrateAsked,
    MixChanged,
    NodeLost,
    Offered,
    PeerLost,
    PrefillEvent,
    RequestCancelled,
    StepDone,
    StepFailed,
    Submitted,
    Tick,
)
from core.ids import AttemptId, NodeId, RequestId, request_of
from core.lifecycle import DECODE, PREFILL, REQUEST, DecodeState, PrefillState, RequestState, State, Table, moves
from core.membership import GatewayLost
from scheduler.scheduler import Scheduler

LETS_GO = frozenset(
    {
        PrefillState.ENDING,
        PrefillState.GONE,
        DecodeState.ENDING,
        DecodeState.GONE,
        DecodeState.DECODING,
        DecodeState.SAVED,
        DecodeState.LEAVING,
    }
)
"""Where an attempt may stand once its peer is known to be lost."""

_WORDS = {REQUEST.title: "request", PREFILL.title: "prefill", DECODE.title: "decode"}
_ALLOWED: dict[tuple[str, State, type[Event] | None], frozenset[State]] = {}


def check_move(table: Table, old: State, event: Event | None, new: State) -> None:
    """As `core.lifecycle.check_move`, but remembers the answers."""
    key = (table.title, old, None if event is None else type(event))
    allowed = _ALLOWED.get(key)
    if allowed is None:
        allowed = _ALLOWED[key] = moves(table, old, event)
    assert new in allowed, f"{table.title}: {old} -> {new} on {event!r}; allowed: {sorted(allowed)}"


def cell(table: Table, state: State, event: str) -> tuple[str, str]:
    """The name under which a hit is counted."""
    return f"{_WORDS[table.title]} {state}", event


def event_word(event: Event) -> str:
    """How an event is called in the hits: its class, and how a fetch failed."""
    return f"KVFailed({event.end.value})" if isinstance(event, KVFailed) else type(event).__name__


@dataclass(slots=True)
class AttemptLives:
    """The attempts of one node: where they stood before an event, and where they stand after it.

    Owns: which peer each attempt was said to have, which step holds which attempts, and who was reported gone.
    """

    machine: Node
    watch: Watch
    peers: dict[AttemptId, NodeId] = field(default_factory=dict)
    steps: dict[int, tuple[AttemptId, ...]] = field(default_factory=dict)
    reported: set[AttemptId] = field(default_factory=set)
    _before: list[tuple[AttemptId, PrefillState, DecodeState]] = field(default_factory=list)

    def before(self, event: Event) -> None:
        """Note where those stand that the event is about."""
        if isinstance(event, Submitted):
            self.peers[event.attempt] = event.decode_node
        elif isinstance(event, Offered):
            self.peers[event.attempt] = event.handle.owner
            self.reported.discard(event.attempt)  # a row may come back to where it has been
        elif isinstance(event, MigrateAsked) and self._decodes(event.attempt):
            self.peers[event.attempt] = event.to
        prefill, decode = self.machine.prefill, self.machine.decode
        self._before = [(at, prefill.state_of(at), decode.state_of(at)) for at in self._concerned(event)]

    def after(self, event: Event) -> None:
        """Compare with where they stand now. A tick is a hit only where it moved something."""
        word = event_word(event)
        for attempt, old_prefill, old_decode in self._before:
            new_prefill, new_decode = self.machine.prefill.state_of(attempt), self.machine.decode.state_of(attempt)
            is_here = new_prefill is not PrefillState.GONE or new_decode is not DecodeState.GONE
            assert not is_here or attempt not in self.reported, f"{attempt} is back after it was reported gone"
            if isinstance(event, PeerLost):
                lets_go = new_prefill in LETS_GO and new_decode in LETS_GO
                assert lets_go, f"{attempt} is {new_prefill}, {new_decode} after {event.node} was lost"
            is_lent = old_prefill is PrefillState.GONE and new_prefill is not PrefillState.GONE
            is_adopted = old_decode is DecodeState.GONE and new_decode is not DecodeState.GONE
            at_prefill = isinstance(event, PrefillEvent) or old_prefill is not PrefillState.GONE or is_lent
            at_decode = isinstance(event, DecodeEvent) or old_decode is not DecodeState.GONE or is_adopted
            check_move(PREFILL, old_prefill, event if at_prefill else None, new_prefill)
            check_move(DECODE, old_decode, event if at_decode else None, new_decode)
            if isinstance(event, Tick) and (old_prefill, old_decode) == (new_prefill, new_decode):
                continue
            if at_prefill or not at_decode:
                self.watch.hits[cell(PREFILL, old_prefill, word)] += 1
            if at_decode or not at_prefill:
                self.watch.hits[cell(DECODE, old_decode, word)] += 1

    def note(self, fault: str) -> None:
        """Something befell the whole node."""
        for attempt in self._all():
            state = self.machine.prefill.state_of(attempt)
            if state is not PrefillState.GONE:
                self.watch.hits[cell(PREFILL, state, fault)] += 1
            else:
                self.watch.hits[cell(DECODE, self.machine.decode.state_of(attempt), fault)] += 1

    def _all(self) -> tuple[AttemptId, ...]:
        return self.machine.prefill.attempts + self.machine.decode.attempts

    def _decodes(self, attempt: AttemptId) -> bool:
        return self.machine.decode.state_of(attempt) is DecodeState.DECODING

    def _concerned(self, event: Event) -> Collection[AttemptId]:
        match event:
            case PeerLost(node):
                return [attempt for attempt in self._all() if self.peers.get(attempt) == node]
            case MixChanged() | Tick():
                return self._all()
            case LeasesRenewed():
                return event.attempts
            case StepDone(result):
                return self.steps.pop(result.step)
            case StepFailed(step):
                return self.steps.pop(step)
        attempt = getattr(event, "attempt", None)
        return () if attempt is None else (attempt,)


@dataclass(slots=True)
class RequestLives:
    """The requests at the scheduler, likewise."""

    scheduler: Scheduler
    watch: Watch
    cancelled: set[RequestId] = field(default_factory=set)
    _before: list[tuple[RequestId, RequestState]] = field(default_factory=list)

    def before(self, event: Event) -> None:
        """Note where those stand that the event is about."""
        if isinstance(event, RequestCancelled):
            self.cancelled.add(event.request)
        self._before = [(request, self.scheduler.state_of(request)) for request in self._concerned(event)]

    def after(self, event: Event) -> None:
        """Compare with where they stand now."""
        word = event_word(event)
        for request, old in self._before:
            new = self.scheduler.state_of(request)
            is_live = new is not RequestState.ENDED
            assert not is_live or request not in self.cancelled, f"{request} is {new} after it was cancelled"
            check_move(REQUEST, old, event, new)
            if new is not old or not isinstance(event, Tick):
                self.watch.hits[cell(REQUEST, old, word)] += 1

    def _concerned(self, event: Event) -> Collection[RequestId]:
        match event:
            case Tick():
                return self.scheduler.live_requests
            case NodeLost(node):
                view = self.scheduler.view.nodes.get(node)
                return {request_of(attempt): None for attempt in view.bookings} if view else ()
            case GatewayLost(gateway):
                self.cancelled.update(concerned := self.scheduler.requests_of(gateway))
                return concerned
            case _:
                if (attempt := getattr(event, "attempt", None)) is not None:
                    return (request_of(attempt),)
        request = getattr(event, "request", None)
        if request is None:
            return ()
        return (getattr(request, "id", request),)
