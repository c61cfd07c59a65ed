"""Attempts on their way in: offered, claimed, fetched, proven. What arrives whole is handed to the rows."""

from core.commands import Command, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    ClaimAnswered,
    Claimed,
    HandoffEvent,
    KVArrived,
    KVFailed,
    LeaseReleased,
    LeasesRenewed,
    Offered,
    Sealed,
)
from core.ids import SCHEDULER, AttemptId, NodeId
from core.kv import num_blocks
from core.lifecycle import DecodeState
from decode_worker.config import DecodeConfig
from decode_worker.reservations import Incoming, add_part, commit, fetch_parts, incoming_of, leader_for, reserve
from engine.blocks import BlockPool


class Intake:
    """Decides for all attempts that are handed to this node and do not decode yet.

    Owns: their reservations and fetches, and `Sealed` messages that overtook their `Offered`.
    Invariant: no block is given back while a fetch that may write it is open; nothing is read that was not committed.
    """

    def __init__(self, config: DecodeConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._incoming: dict[AttemptId, Incoming] = {}
        self._early: dict[AttemptId, list[tuple[float, Sealed]]] = {}
        self._arrived: list[Incoming] = []
        self._renewed_at = float("-inf")
        self.num_dropped_events = 0

    def __len__(self) -> int:
        return len(self._incoming)

    def __contains__(self, attempt: AttemptId) -> bool:
        return attempt in self._incoming

    def state_of(self, attempt: AttemptId) -> DecodeState:
        """The state of an attempt; GONE where it is not here."""
        incoming = self._incoming.get(attempt)
        return incoming.state if incoming else DecodeState.GONE

    @property
    def attempts(self) -> tuple[AttemptId, ...]:
        """All attempts that are not gone, oldest first."""
        return tuple(self._incoming)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing awaited."""
        return not self._incoming and not self._early

    def tables(self) -> list[tuple[int, ...]]:
        """The block tables held here."""
        return [incoming.table for incoming in self._incoming.values()]

    def take_arrived(self) -> list[Incoming]:
        """Attempts whose KV is all here and committed, once; they are no longer the intake's."""
        arrived, self._arrived = self._arrived, []
        return arrived

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: HandoffEvent, now: float) -> list[Command]:
        """One event of a handoff, or of a row that migrates here."""
        match event:
            case Offered():
                return self._on_offered(event, now)
            case Sealed():
                return self._on_sealed(event, now)
            case ClaimAnswered(attempt, owner, granted):
                return self._on_claim_answered(attempt, owner, granted, now)
            case KVArrived(attempt, fetch):
                return self._on_fetched(attempt, fetch, None)
            case KVFailed(attempt, fetch, end, _):
                return self._on_fetched(attempt, fetch, end)

    def drop(self, attempt: AttemptId) -> list[Command]:
        """Give an attempt up."""
        return self._end(self._incoming[attempt], AttemptEnd.DROPPED)

    def forget_early(self, attempt: AttemptId) -> None:
        """Parts of an attempt that will not come."""
        self._early.pop(attempt, None)

    def lose_peer(self, node: NodeId) -> list[Command]:
        """A lender is gone: what is not all here is lost. Its open fetches end by themselves."""
        lost = [incoming for incoming in self._incoming.values() if incoming.owner == node]
        return [command for incoming in lost for command in self._end(incoming, AttemptEnd.KV_LOST)]

    def tick(self, now: float) -> list[Command]:
        """Reap what waited too long, forget what nobody offers, renew what still waits."""
        commands: list[Command] = []
        for incoming in [i for i in self._incoming.values() if self._is_late(i, now)]:
            commands += self._end(incoming, AttemptEnd.KV_LOST)
        lease_s = self._config.timers.lease_s
        for attempt in [a for a, parts in self._early.items() if now - parts[0][0] > lease_s]:
            del self._early[attempt]
        return commands + self._renew(now)

    def admit(self, now: float) -> list[Command]:
        """Reserve for those that wait, oldest first, and claim: after each event, as blocks may have become free.

        What waits for blocks that are under way for another attempt holds none meanwhile, and is no reason to wait.
        """
        commands: list[Command] = []
        if not self._incoming:
            return commands
        for incoming in [i for i in self._incoming.values() if i.state is DecodeState.WAITING]:
            if self._pool.num_available <= incoming.num_lacking:
                break
            if self._follows(incoming):
                continue
            if not reserve(incoming, self._pool, self._config.block_size):
                incoming.num_lacking = self._pool.num_available
                break
            incoming.state, incoming.claimed_at = DecodeState.CLAIMING, now
            commands.append(Tell(incoming.owner, Claimed(incoming.id, self._config.node)))
        return commands

    def _follows(self, incoming: Incoming) -> bool:
        """Whether another attempt fetches what it wants; once that is here or has failed, it is asked anew."""
        leader = self._incoming.get(incoming.follows) if incoming.follows else None
        if leader is None or leader.end is not None:
            incoming.follows = leader_for(incoming, self._incoming.values(), self._pool)
        return incoming.follows is not None

    # ── one by one ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_offered(self, event: Offered, now: float) -> list[Command]:
        early = [sealed for _, sealed in self._early.pop(event.attempt, [])]
        if event.attempt in self._incoming:
            self.num_dropped_events += 1
            return []
        incoming = incoming_of(event, early, now)
        if num_blocks(incoming.num_tokens, self._config.block_size) > self._pool.num_blocks:
            return [self._release(incoming), self._report(incoming.id, AttemptEnd.REFUSED)]
        self._incoming[incoming.id] = incoming
        return []

    def _on_sealed(self, event: Sealed, now: float) -> list[Command]:
        incoming = self._incoming.get(event.attempt)
        if incoming is None:
            if event.attempt in self._early or len(self._early) < self._config.max_early:
                self._early.setdefault(event.attempt, []).append((now, event))
            return []
        if incoming.end is not None:
            return []
        add_part(incoming, event.handle, event.done, now)
        return self._go_on(incoming) if incoming.state is DecodeState.FETCHING else []

    def _on_claim_answered(self, attempt: AttemptId, owner: NodeId, granted: bool, now: float) -> list[Command]:
        """A grant that comes too late is given back; a refusal may also withdraw what was granted."""
        incoming = self._incoming.get(attempt)
        if incoming is not None and not granted and incoming.state in (DecodeState.CLAIMING, DecodeState.FETCHING):
            return self._end(incoming, AttemptEnd.KV_LOST)
        if incoming is None or incoming.state is not DecodeState.CLAIMING:
            self.num_dropped_events += 1
            return [Tell(owner, LeaseReleased(attempt, self._config.node))] if granted else []
        incoming.state, incoming.granted_at = DecodeState.FETCHING, now
        return self._go_on(incoming)

    def _on_fetched(self, attempt: AttemptId, fetch: int, failed: AttemptEnd | None) -> list[Command]:
        incoming = self._incoming.get(attempt)
        indices = incoming.fetches.pop(fetch, None) if incoming else None
        if incoming is None or indices is None:
            self.num_dropped_events += 1
            return []
        if failed is not None:
            return self._end(incoming, failed)
        if incoming.end is not None:
            return self._settle(incoming)
        incoming.arrived.update(indices)
        return self._go_on(incoming)

    def _go_on(self, incoming: Incoming) -> list[Command]:
        """Fetch what is sealed; where all is here, commit and let the lender go."""
        commands: list[Command] = list(fetch_parts(incoming, self._pool))
        if not incoming.is_complete:
            return commands
        commit(incoming, self._pool)
        del self._incoming[incoming.id]
        self._arrived.append(incoming)
        return [*commands, self._release(incoming, has_all=True)]

    # ── waiting and ending ───────────────────────────────────────────────────────────────────────────────────────────

    def _is_late(self, incoming: Incoming, now: float) -> bool:
        timers = self._config.timers
        if incoming.end is not None:
            return False
        if incoming.state is DecodeState.CLAIMING:
            return now - incoming.claimed_at > timers.claim_s
        return incoming.done is not None and now - incoming.done_at > timers.handoff_s

    def _renew(self, now: float) -> list[Command]:
        if now - self._renewed_at < self._config.timers.renewal_s:
            return []
        self._renewed_at = now
        waiting: dict[NodeId, list[AttemptId]] = {}
        for incoming in self._incoming.values():
            if incoming.state in (DecodeState.WAITING, DecodeState.CLAIMING):
                waiting.setdefault(incoming.owner, []).append(incoming.id)
        return [Tell(owner, LeasesRenewed(self._config.node, tuple(ids))) for owner, ids in waiting.items()]

    def _end(self, incoming: Incoming, end: AttemptEnd) -> list[Command]:
        if incoming.end is None:
            incoming.end = end
        return self._settle(incoming)

    def _settle(self, incoming: Incoming) -> list[Command]:
        """Give the blocks back, let the lender go and report, or wait in ENDING for the open fetches."""
        assert incoming.end is not None
        if incoming.fetches:
            if incoming.state is not DecodeState.ENDING:
                incoming.state = DecodeState.ENDING
                self._pool.quarantine(incoming.table)
            return []
        self._pool.free(incoming.table)
        del self._incoming[incoming.id]
        return [self._release(incoming), self._report(incoming.id, incoming.end)]

    def _release(self, incoming: Incoming, *, has_all: bool = False) -> Tell:
        return Tell(incoming.owner, LeaseReleased(incoming.id, self._config.node, has_all))

    def _report(self, attempt: AttemptId, end: AttemptEnd) -> Tell:
        return Tell(SCHEDULER, AttemptFinished(attempt, self._config.node, end))
