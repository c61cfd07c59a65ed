"""The life of requests, attempts, leases and blocks, as tables that are total over state and event.

The machines take their states from here; tests compare every move that they make with these rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from core import events
from core.membership import GatewayLost


class RequestState(StrEnum):
    """A request at the scheduler. ENDED stands for unknown, too."""

    WAITING = "waiting"
    ROUTED = "routed"
    RESUMING = "resuming"
    ENDED = "ended"


class PrefillState(StrEnum):
    """An attempt at its prefill machine. GONE stands for never met, too."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    OFFERED = "offered"
    CLAIMED = "claimed"
    ENDING = "ending"
    GONE = "gone"


class DecodeState(StrEnum):
    """An attempt at its decode machine. GONE stands for never met, too."""

    WAITING = "waiting"
    CLAIMING = "claiming"
    FETCHING = "fetching"
    DECODING = "decoding"
    SAVED = "saved"
    LEAVING = "leaving"
    ENDING = "ending"
    GONE = "gone"


class LeaseState(StrEnum):
    """The lease over an attempt's offered blocks, at the lender."""

    GRANTED = "granted"
    CLAIMED = "claimed"
    RELEASED = "released"
    EXPIRED = "expired"
    REVOKED = "revoked"


class BlockState(StrEnum):
    """One block of a node's pool."""

    FREE = "free"
    CACHED = "cached"
    FILLING = "filling"
    SEALED = "sealed"
    RESERVED = "reserved"
    RECEIVING = "receiving"
    IN_USE = "in_use"
    QUARANTINED = "quarantined"


class Inner(StrEnum):
    """What a machine does of its own accord, after any event: nothing was said about this request or attempt."""

    ROUTE = "a route is found, or refused"
    PLAN = "the next step takes it"
    ROOM = "blocks became free"
    GIVE_WAY = "an online request needs the place of an offline one"
    PREEMPT = "blocks ran out: the youngest of the lowest class goes"


class BlockVerb(StrEnum):
    """What is done to a block; the words of the pool."""

    ALLOCATE = "allocate"
    SHARE = "share"
    SEAL = "seal"
    ADOPT = "adopt"
    RECEIVE = "receive"
    COMMIT = "commit"
    QUARANTINE = "quarantine"
    FREE = "free"


State = RequestState | PrefillState | DecodeState | LeaseState | BlockState
Trigger = type[object] | Inner | BlockVerb


@dataclass(frozen=True, slots=True)
class Row:
    """What an event may lead to, and what the machine does then."""

    next: frozenset[State]
    action: str


@dataclass(frozen=True, slots=True)
class Table:
    """One life. A pair that `rows` lacks changes nothing: a message to one attempt is dropped and counted, an event for
    the whole node does not concern it. `ends` are the states in which nothing is held."""

    title: str
    start: State
    ends: frozenset[State]
    rows: Mapping[tuple[State, Trigger], Row]

    @property
    def states(self) -> tuple[State, ...]:
        """All states, in the order of their enumeration."""
        return tuple(type(self.start))


DROP_AND_COUNT = "drop and count"


def row(table: Table, state: State, trigger: Trigger) -> Row:
    """The row of a pair. Total: what is not listed changes nothing."""
    return table.rows.get((state, trigger)) or Row(frozenset({state}), DROP_AND_COUNT)


def moves(table: Table, old: State, event: object | None) -> frozenset[State]:
    """Where `old` may stand after `event`: the row, and then whatever the machine does of its own accord.

    `event` is an event, its class, or a `BlockVerb`; None where nothing was said about this very attempt.
    """
    reached = set() if event is None else set(row(table, old, _trigger(event)).next)
    if event is None:
        reached.add(old)
    fresh = set(reached)
    while fresh:
        found = {state for at in fresh for inner in Inner for state in row(table, at, inner).next}
        fresh = found - reached
        reached |= fresh
    return frozenset(reached)


def check_move(table: Table, old: State, event: object | None, new: State) -> None:
    """Asserts that `table` allows to stand at `new` after `event` came at `old` (see `moves`)."""
    allowed = moves(table, old, event)
    assert new in allowed, f"{table.title}: {old} -> {new} on {event!r}; allowed: {sorted(allowed)}"


def _trigger(event: object) -> Trigger:
    return event if isinstance(event, type | Inner | BlockVerb) else type(event)


def _rows(*lines: tuple[State, Trigger, str, str]) -> dict[tuple[State, Trigger], Row]:
    """Reads `(state, trigger, "next next ...", action)` lines. Raises ValueError for a word that is no state."""
    found: dict[tuple[State, Trigger], Row] = {}
    for state, trigger, names, action in lines:
        assert (state, trigger) not in found, f"two rows for {state}, {trigger}"
        found[state, trigger] = Row(frozenset(type(state)(name) for name in names.split()), action)
    return found


_R, _P, _D, _L, _B, _V = RequestState, PrefillState, DecodeState, LeaseState, BlockState, BlockVerb

REQUEST = Table(
    "A request, at the scheduler",
    _R.ENDED,
    frozenset({_R.ENDED}),
    _rows(
        (_R.ENDED, events.RequestArrived, "waiting ended", "queue it; a bound is reached: refuse; tombstone: nothing"),
        (_R.ENDED, events.RequestCancelled, "ended", "tombstone for one lease: it may have overtaken `RequestArrived`"),
        (_R.ENDED, events.StreamEnded, "ended", "likewise"),
        (_R.ENDED, events.AttemptFinished, "ended", "return that node's credits, booked until now"),
        (_R.ENDED, events.NodeLost, "ended", "return the lost node's credits"),
        (_R.ENDED, events.Stayed, "ended", "nothing: the node it did not go to has been told of the end"),
        (_R.WAITING, Inner.ROUTE, "routed ended", "book slot and credit together, `Submitted`; or `RequestEnded`"),
        (_R.WAITING, events.RequestCancelled, "ended", "leave the queue; no node is told"),
        (_R.WAITING, events.StreamEnded, "ended", "leave the queue"),
        (_R.WAITING, GatewayLost, "ended", "leave the queue"),
        (_R.WAITING, events.AttemptFinished, "waiting", "return an earlier attempt's credits"),
        (_R.WAITING, events.NodeLost, "waiting ended", "return its credits; end where nobody is left"),
        (_R.WAITING, events.Tick, "waiting ended", "deadline or waiting time over: `RequestEnded`"),
        (_R.ROUTED, events.AttemptFinished, "routed waiting resuming ended", "return credits; refused: wait again, not "
         "a try; lost, failed or preempted: `AttemptLost`, and `Dropped` to the other node"),
        (_R.ROUTED, Inner.GIVE_WAY, "resuming", "offline: `AttemptLost`, and `Dropped` to its nodes"),
        (_R.ROUTED, events.NodeLost, "routed resuming", "if it is still booked there: `AttemptLost`; it was on its way "
         "there: its node will say"),
        (_R.ROUTED, events.Stayed, "routed", "return the credits where it should have gone; offered: `Dropped` there"),
        (_R.ROUTED, events.StreamSilent, "resuming", "`AttemptLost` to the gateway, `Dropped` to the nodes"),
        (_R.ROUTED, events.StreamEnded, "ended", "`Dropped` to nodes that have not reported"),
        (_R.ROUTED, events.RequestCancelled, "ended", "`Dropped` to both nodes at once"),
        (_R.ROUTED, GatewayLost, "ended", "`Dropped` to both nodes at once"),
        (_R.ROUTED, events.Tick, "routed resuming ended", "deadline over: `RequestEnded`, `Dropped`; all nodes have "
         "reported, and its last tokens do not come: `AttemptLost`; its node drains: `MigrateAsked`"),
        (_R.RESUMING, events.RequestResumed, "waiting ended", "eligible: wait with the log, by age; else failed"),
        (_R.RESUMING, events.RequestCancelled, "ended", "nothing runs for it any more"),
        (_R.RESUMING, events.StreamEnded, "ended", "the stream was complete after all"),
        (_R.RESUMING, GatewayLost, "ended", "nothing runs for it any more"),
        (_R.RESUMING, events.AttemptFinished, "resuming", "return credits"),
        (_R.RESUMING, events.NodeLost, "resuming", "return credits"),
        (_R.RESUMING, events.Tick, "resuming ended", "deadline over, or no answer of the gateway: failed"),
    ),
)  # fmt: skip

PREFILL = Table(
    "An attempt, at its prefill machine",
    _P.GONE,
    frozenset({_P.GONE}),
    _rows(
        (_P.GONE, events.Submitted, "queued gone", "queue it; tombstone: report dropped; no room, other mix: refused"),
        (_P.GONE, events.Claimed, "gone", "`ClaimAnswered` (refused)"),
        (_P.GONE, events.Dropped, "gone", "tombstone for one lease; report dropped"),
        (_P.GONE, events.Tick, "gone", "forget old tombstones"),
        (_P.GONE, events.StepDone, "offered gone", "a row that leaves is sealed: grant, `Offered` with its log"),
        (_P.QUEUED, Inner.PLAN, "prefilling", "allocate all blocks of the prompt; `RunStep`"),
        (_P.QUEUED, events.Dropped, "gone", "report dropped"),
        (_P.QUEUED, events.PeerLost, "queued gone", "its decode node: report kv_lost"),
        (_P.PREFILLING, events.StepDone, "prefilling offered claimed ending gone", "first sealed chunk: grant, "
         "`Offered`; next ones: `Sealed`; prompt done: token 0. An end token, or decoded on this node: over here"),
        (_P.PREFILLING, events.StepFailed, "prefilling ending gone", "its step: quarantine, report step_failed"),
        (_P.PREFILLING, events.Claimed, "prefilling", "pin the lease, `Lend`"),
        (_P.PREFILLING, events.Lent, "prefilling", "`ClaimAnswered` (granted)"),
        (_P.PREFILLING, events.LeasesRenewed, "prefilling", "the lease lasts longer"),
        (_P.PREFILLING, events.LeaseReleased, "ending gone", "nobody will read it: stop, report"),
        (_P.PREFILLING, events.PeerLost, "prefilling ending gone", "its reader: `Revoke` if claimed; stop, kv_lost"),
        (_P.PREFILLING, events.Dropped, "ending gone", "blocks in a step or a claimed lease wait for its end"),
        (_P.PREFILLING, events.Tick, "prefilling ending gone", "an unclaimed lease ran out: stop, kv_lost"),
        (_P.OFFERED, events.LeasesRenewed, "offered", "expiry = max(expiry, now + lease)"),
        (_P.OFFERED, events.Claimed, "claimed", "pin, `Lend`"),
        (_P.OFFERED, events.LeaseReleased, "ending gone", "the reader gave up: cache or free, report; a row goes back"),
        (_P.OFFERED, events.Dropped, "ending gone", "the lease ends; report dropped"),
        (_P.OFFERED, events.PeerLost, "offered ending gone", "its reader: the lease ends; kv_lost; a row goes back"),
        (_P.OFFERED, events.Tick, "offered ending gone", "the lease ran out: report kv_lost; a row goes back"),
        (_P.CLAIMED, events.Lent, "claimed", "`ClaimAnswered` (granted)"),
        (_P.CLAIMED, events.LeaseReleased, "ending gone", "cache or free; report handed_off; a row that the reader did "
         "not get goes back"),
        (_P.CLAIMED, events.PeerLost, "claimed ending", "its reader: `Revoke`, and wait for `Fenced`"),
        (_P.CLAIMED, events.Dropped, "ending", "untouched until released or fenced"),
        (_P.ENDING, events.StepDone, "ending gone", "the last step that could write is over"),
        (_P.ENDING, events.StepFailed, "ending gone", "the last step that could write is over"),
        (_P.ENDING, events.LeaseReleased, "ending gone", "the reader is done"),
        (_P.ENDING, events.Fenced, "ending gone", "the reader cannot read any more"),
        (_P.ENDING, events.PeerLost, "ending", "its reader: `Revoke`, and wait for `Fenced`"),
        (_P.ENDING, events.Claimed, "ending", "`ClaimAnswered` (refused)"),
        (_P.ENDING, events.Lent, "ending", "`ClaimAnswered` (granted): the claim came before the end"),
        (_P.ENDING, events.Dropped, "ending", "one report is enough: it follows when the blocks are back"),
    ),
)  # fmt: skip

DECODE = Table(
    "An attempt, at its decode machine",
    _D.GONE,
    frozenset({_D.GONE}),
    _rows(
        (_D.GONE, events.Offered, "waiting claiming gone", "reserve and `Claimed`, in any mix; wait if blocks are "
         "short; tombstone: `LeaseReleased`, report"),
        (_D.GONE, events.StepDone, "decoding gone", "its own node's prefill is done: the row joins; nothing moves"),
        (_D.GONE, events.Sealed, "gone", "it overtook its `Offered`: keep it, bounded"),
        (_D.GONE, events.ClaimAnswered, "gone", "a late grant is given back: `LeaseReleased`"),
        (_D.GONE, events.Dropped, "gone", "tombstone for one lease; report dropped"),
        (_D.GONE, events.Tick, "gone decoding", "forget old tombstones and early `Sealed`; a row was not claimed in "
         "time: it is back, `Stayed`"),
        (_D.GONE, events.LeaseReleased, "decoding gone", "a row was not taken: it is back, `Stayed`"),
        (_D.GONE, events.PeerLost, "decoding gone", "nobody had claimed a row: it is back, `Stayed`"),
        (_D.GONE, events.MigrateAsked, "gone", "`Stayed`"),
        (_D.WAITING, Inner.ROOM, "claiming", "reserve, `Claimed`; not while another attempt fetches most of it"),
        (_D.WAITING, events.Sealed, "waiting", "remember the longer handle"),
        (_D.WAITING, events.MigrateAsked, "waiting", "`Stayed`: only what decodes can move"),
        (_D.WAITING, events.Dropped, "gone", "`LeaseReleased`; report dropped"),
        (_D.WAITING, events.PeerLost, "waiting gone", "its lender: report kv_lost"),
        (_D.WAITING, events.Tick, "waiting gone", "renew the lease; too long after the last seal: kv_lost"),
        (_D.CLAIMING, events.ClaimAnswered, "fetching decoding gone", "granted: `FetchKV` of what is sealed, "
         "none if all is cached here; refused: kv_lost"),
        (_D.CLAIMING, events.Sealed, "claiming", "remember the longer handle"),
        (_D.CLAIMING, events.MigrateAsked, "claiming", "`Stayed`"),
        (_D.CLAIMING, events.Dropped, "gone", "cancel the reservation, `LeaseReleased`; report dropped"),
        (_D.CLAIMING, events.PeerLost, "claiming gone", "its lender: cancel the reservation, kv_lost"),
        (_D.CLAIMING, events.Tick, "claiming gone", "no answer in time: cancel, `LeaseReleased`, kv_lost"),
        (_D.FETCHING, events.Sealed, "fetching decoding", "`FetchKV` of the new part"),
        (_D.FETCHING, events.KVArrived, "fetching decoding", "the next part; all there: a row joins, `LeaseReleased`"),
        (_D.FETCHING, events.ClaimAnswered, "ending gone", "refused: the lender's prefill failed, the rest will not "
         "come: as a failed fetch"),
        (_D.FETCHING, events.KVFailed, "ending gone", "quarantine until no fetch is open; `LeaseReleased`; report"),
        (_D.FETCHING, events.MigrateAsked, "fetching", "`Stayed`"),
        (_D.FETCHING, events.Dropped, "ending gone", "quarantine until the open fetch has ended, then release"),
        (_D.FETCHING, events.PeerLost, "fetching ending gone", "its lender: as a failed fetch"),
        (_D.FETCHING, events.Tick, "fetching ending gone", "too long after the last seal: give up, kv_lost"),
        (_D.DECODING, Inner.PREEMPT, "saved ending gone", "to host memory where that is cheaper; else report "
         "preempted: it comes back with its log"),
        (_D.DECODING, events.StepDone, "decoding ending gone", "`Emit`; stop or length: report finished; it failed "
         "alone: report step_failed"),
        (_D.DECODING, events.StepFailed, "decoding ending gone", "its step: report step_failed"),
        (_D.DECODING, events.Dropped, "ending gone", "idle: free at once; in a step: at its end"),
        (_D.DECODING, events.MigrateAsked, "leaving decoding", "no further step; to the node itself: `Stayed`"),
        (_D.LEAVING, events.StepDone, "leaving ending gone", "its last one: the next step seals its blocks; sealed: "
         "the lender has it; complete or failed: as a row that decodes"),
        (_D.LEAVING, events.StepFailed, "leaving decoding ending gone", "its last one: report step_failed; the one "
         "that should have sealed: it decodes on, `Stayed`"),
        (_D.LEAVING, events.PeerLost, "leaving decoding", "where it should go: it decodes on, `Stayed`"),
        (_D.LEAVING, events.Dropped, "ending gone", "as a row that decodes"),
        (_D.SAVED, Inner.ROOM, "decoding", "the next step copies it back, the oldest first, before any admission"),
        (_D.SAVED, events.StepDone, "saved", "the step that copied it out: its blocks are free"),
        (_D.SAVED, events.StepFailed, "saved gone", "the step that copied it out: report step_failed"),
        (_D.SAVED, events.MigrateAsked, "saved", "`Stayed`: it must be back first"),
        (_D.SAVED, events.Dropped, "ending gone", "copied out: forget it; on its way there: at its step's end"),
        (_D.ENDING, events.KVArrived, "ending gone", "the fetch has ended; its bytes are not used"),
        (_D.ENDING, events.KVFailed, "ending gone", "the fetch has ended"),
        (_D.ENDING, events.StepDone, "ending gone", "the last step that could write is over"),
        (_D.ENDING, events.StepFailed, "ending gone", "the last step that could write is over"),
        (_D.ENDING, events.ClaimAnswered, "ending", "a late grant is given back: `LeaseReleased`"),
        (_D.ENDING, events.MigrateAsked, "ending", "`Stayed`"),
        (_D.ENDING, events.Dropped, "ending", "one report is enough: it follows when the blocks are back"),
    ),
)  # fmt: skip

LEASE = Table(
    "A lease, at the lender",
    _L.GRANTED,
    frozenset({_L.RELEASED, _L.EXPIRED, _L.REVOKED}),
    _rows(
        (_L.GRANTED, events.LeasesRenewed, "granted", "expiry = max(expiry, now + lease)"),
        (_L.GRANTED, events.Claimed, "claimed", "no expiry from here on"),
        (_L.GRANTED, events.LeaseReleased, "released", "the reader never will read"),
        (_L.GRANTED, events.Dropped, "revoked", "nobody has claimed it: over at once"),
        (_L.GRANTED, events.StepFailed, "granted revoked", "the attempt failed while it was lent in part"),
        (_L.GRANTED, events.PeerLost, "granted revoked", "its reader"),
        (_L.GRANTED, events.Tick, "granted expired", "not renewed for a lease's time; a row's: not claimed in time"),
        (_L.CLAIMED, events.LeasesRenewed, "claimed", "nothing: no expiry"),
        (_L.CLAIMED, events.LeaseReleased, "released", "the reader is done"),
        (_L.CLAIMED, events.Dropped, "claimed", "the reader may be copying: wait"),
        (_L.CLAIMED, events.PeerLost, "claimed", "its reader: `Revoke`"),
        (_L.CLAIMED, events.Fenced, "revoked", "the transport cannot be read through any more"),
    ),
)

BLOCK = Table(
    "A block, in its pool",
    _B.FREE,
    frozenset({_B.FREE, _B.CACHED}),
    _rows(
        (_B.FREE, _V.ALLOCATE, "filling reserved in_use", "generation + 1; for a prompt, a handoff, or a growing row"),
        (_B.CACHED, _V.ALLOCATE, "filling reserved in_use", "the oldest, when none is free; its content is forgotten"),
        (_B.CACHED, _V.SHARE, "sealed", "a prefix hit of the same tenant"),
        (_B.CACHED, _V.FREE, "free", "the operator wants no prefix kept; its content is forgotten"),
        (_B.FILLING, _V.SEAL, "sealed", "full, or the prompt's last; digested: it never changes again"),
        (_B.FILLING, _V.ADOPT, "in_use", "decoded on this node, not yet full"),
        (_B.FILLING, _V.QUARANTINE, "quarantined", "its attempt is over while a step may write it"),
        (_B.FILLING, _V.FREE, "free", "no step can write it"),
        (_B.SEALED, _V.SHARE, "sealed", "one more owner"),
        (_B.SEALED, _V.ADOPT, "in_use", "decoded on this node"),
        (_B.SEALED, _V.QUARANTINE, "sealed quarantined", "its attempt is over, a step may touch it; shared: nothing"),
        (_B.SEALED, _V.FREE, "sealed cached free", "one owner less; without owners kept as a prefix, or free"),
        (_B.RESERVED, _V.RECEIVE, "receiving", "a fetch may write it"),
        (_B.RESERVED, _V.QUARANTINE, "quarantined", "with the rest of its table"),
        (_B.RESERVED, _V.FREE, "free", "nothing was fetched into it"),
        (_B.RECEIVING, _V.COMMIT, "in_use", "digest and generation matched, and the attempt is current"),
        (_B.RECEIVING, _V.QUARANTINE, "quarantined", "its attempt is over while a fetch may write it"),
        (_B.RECEIVING, _V.FREE, "free", "its fetch has ended; the rest of the handoff failed"),
        (_B.IN_USE, _V.SHARE, "in_use", "one more owner"),
        (_B.IN_USE, _V.SEAL, "sealed", "its row leaves: as it stands, digested; it does not change while it is lent"),
        (_B.SEALED, _V.SEAL, "sealed", "likewise; others hold it too"),
        (_B.IN_USE, _V.QUARANTINE, "in_use quarantined", "its attempt is over, a step may touch it; shared: nothing"),
        (_B.IN_USE, _V.FREE, "in_use cached free", "one owner less; without owners kept as a prefix, or free"),
        (_B.QUARANTINED, _V.FREE, "cached free", "the step or the fetch has ended; never by time alone"),
    ),
)  # fmt: skip

TABLES = (REQUEST, PREFILL, DECODE, LEASE, BLOCK)


def _name(trigger: Trigger) -> str:
    if isinstance(trigger, Inner):
        return f"({trigger.value})"
    return f"`{trigger.value}`" if isinstance(trigger, BlockVerb) else f"`{trigger.__name__}`"


def markdown() -> str:
    """The page `docs/lifecycle.md`."""
    lines = [
        "# Life cycles",
        "",
        "Written by `make lifecycle` from `core/lifecycle.py`; a test compares the two.",
        "",
        "Each table is total. A message to an attempt that meets no row is dropped and counted; an event for the whole",
        "node that meets no row does not concern the attempt. Words in brackets are moves that a machine makes of its",
        "own accord, after any event. *Report* means `AttemptFinished` to the scheduler, once the blocks are back.",
    ]
    for table in TABLES:
        ends = ", ".join(sorted(table.ends))
        lines += ["", f"## {table.title}", "", f"Starts at {table.start}. Nothing is held at: {ends}.", ""]
        lines += ["| state | event | next | action |", "| --- | --- | --- | --- |"]
        for (state, trigger), found in table.rows.items():
            after = ", ".join(s for s in table.states if s in found.next)
            lines.append(f"| {state} | {_name(trigger)} | {after} | {found.action} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
