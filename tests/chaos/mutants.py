"""Mutants of the protocol: leases, blocks, fetches, messages, promises, streams."""

from dataclasses import replace
from typing import Any

from cluster.gateway.streams import Delivered, Streams
from cluster.node import Node
from cluster.simulated.fetches import Fetch
from cluster.simulated.links import Links
from core.commands import FetchKV, Tell
from core.events import AttemptEnd, AttemptFinished, Dropped, MixChanged, RequestResumed
from core.ids import SCHEDULER, number_of, request_of
from core.lifecycle import DecodeState
from decode_worker import intake as intake_room
from decode_worker.intake import Intake
from decode_worker.reservations import Incoming, fetch_parts, leader_for, reserve
from decode_worker.rows import Rows
from engine.blocks import BlockPool
from engine.fake import FakeExecutor
from prefill_worker.leases import LeaseBook
from prefill_worker.worker import PrefillWorker
from scheduler.scheduler import Scheduler
from scheduler.view import NodeView
from tests.chaos import deaths, stale
from tests.chaos.mutant import Mutant, Patch

# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def expire_claimed_leases(patch: Patch) -> None:
    def expired(self: LeaseBook, now: float) -> list[Any]:
        return [attempt for attempt, lease in self._leases.items() if lease.expires_at <= now]

    patch.setattr(LeaseBook, "expired", expired)


def free_claimed_blocks_at_drop(patch: Patch) -> None:
    patch.setattr(LeaseBook, "revoke_unclaimed", LeaseBook.end)


def fetch_without_a_claim(patch: Patch) -> None:
    def admit(self: Intake, now: float) -> list[Any]:
        commands: list[Any] = []
        for incoming in [i for i in self._incoming.values() if i.state is DecodeState.WAITING]:
            if not reserve(incoming, self._pool, self._config.block_size):
                break
            incoming.state = DecodeState.FETCHING
            commands += fetch_parts(incoming, self._pool)
        return commands

    patch.setattr(Intake, "admit", admit)


def follow_one_that_is_over(patch: Patch) -> None:
    def follows(self: Intake, incoming: Incoming) -> bool:
        if incoming.follows is None:
            incoming.follows = leader_for(incoming, self._incoming.values(), self._pool)
        return incoming.follows is not None

    patch.setattr(Intake, "_follows", follows)


def prefill_ignores_the_loss_of_a_reader(patch: Patch) -> None:
    patch.setattr(PrefillWorker, "lose_peer", lambda self, node: [])


def decode_ignores_the_loss_of_a_lender(patch: Patch) -> None:
    patch.setattr(Intake, "lose_peer", lambda self, node: [])


def a_failed_lender_says_nothing(patch: Patch) -> None:
    patch.setattr(PrefillWorker, "_withdraw", lambda self, prefill: [])


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def free_blocks_that_a_fetch_still_fills(patch: Patch) -> None:
    original = Intake._settle

    def settle(self: Intake, incoming: Incoming) -> list[Any]:
        incoming.fetches.clear()
        return original(self, incoming)

    patch.setattr(Intake, "_settle", settle)


def mark_instead_of_free_at_drop(patch: Patch) -> None:
    original = Intake.drop

    def drop(self: Intake, attempt: Any) -> list[Any]:
        incoming = self._incoming[attempt]
        if incoming.state is DecodeState.CLAIMING:
            incoming.end = AttemptEnd.DROPPED
            return []
        return original(self, attempt)

    patch.setattr(Intake, "drop", drop)


def free_a_row_that_is_in_a_step(patch: Patch) -> None:
    def settle(self: Rows, row: Any) -> list[Any]:
        if row.id not in self._rows:
            return []
        self._pool.free(row.table)
        del self._rows[row.id]
        self._left.append(row.id)
        return [Tell(SCHEDULER, AttemptFinished(row.id, self._node, row.end))]

    patch.setattr(Rows, "settle", settle)


def free_a_prompt_that_is_in_a_step(patch: Patch) -> None:
    original = PrefillWorker._settle

    def settle(self: PrefillWorker, prefill: Any) -> list[Any]:
        if prefill.id not in self._attempts:
            return []
        prefill.last_step = -1
        return original(self, prefill)

    patch.setattr(PrefillWorker, "_settle", settle)


def reuse_blocks_under_the_same_generation(patch: Patch) -> None:
    original = BlockPool.allocate

    def allocate(self: BlockPool, number: int, state: Any) -> tuple[int, ...] | None:
        blocks = original(self, number, state)
        for block in blocks or ():
            self._generation[block] = 1
        return blocks

    patch.setattr(BlockPool, "allocate", allocate)


def keep_the_content_key_of_an_evicted_block(patch: Patch) -> None:
    patch.setattr(BlockPool, "_forget", lambda self, block: None)


# ── fetches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def skip_the_generation(patch: Patch) -> None:
    patch.setattr(Fetch, "_check_generation", lambda self, column: None)


def skip_the_digest(patch: Patch) -> None:
    patch.setattr(Fetch, "_check_digest", lambda self, column: None)


def decode_before_all_pieces_arrived(patch: Patch) -> None:
    patch.setattr(Incoming, "is_complete", property(lambda self: self.done is not None and bool(self.arrived)))


def decode_on_a_failed_fetch(patch: Patch) -> None:
    original = Intake._on_fetched
    patch.setattr(Intake, "_on_fetched", lambda self, attempt, fetch, failed: original(self, attempt, fetch, None))


def fill_the_blocks_in_another_order(patch: Patch) -> None:
    def reversed_parts(incoming: Incoming, pool: BlockPool) -> list[FetchKV]:
        return [
            replace(command, into=replace(command.into, block_ids=command.into.block_ids[::-1],
                                          generations=command.into.generations[::-1]))
            for command in fetch_parts(incoming, pool)
        ]  # fmt: skip

    patch.setattr(intake_room, "fetch_parts", reversed_parts)


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def deliver_some_messages_twice(patch: Patch) -> None:
    original = Links._arrive

    def arrive(self: Links, link: Any, epoch: int, event: Any) -> None:
        if self._loop.chance.random() < 0.05:
            self.num_under_way += 1
            original(self, link, epoch, event)
        original(self, link, epoch, event)

    patch.setattr(Links, "_arrive", arrive)


def a_node_keeps_no_tombstone(patch: Patch) -> None:
    original = Node._on_dropped

    def on_dropped(self: Node, attempt: Any, now: float) -> list[Any]:
        commands = original(self, attempt, now)
        self._tombstones.clear()
        return commands

    patch.setattr(Node, "_on_dropped", on_dropped)


def the_scheduler_keeps_no_tombstone(patch: Patch) -> None:
    patch.setattr(Scheduler, "_bury", lambda self, request, now: None)


def drop_without_an_answer(patch: Patch) -> None:
    original = Node.handle

    def handle(self: Node, event: Any, now: float) -> list[Any]:
        commands = original(self, event, now)
        if isinstance(event, Dropped):
            return [c for c in commands if not (isinstance(c, Tell) and isinstance(c.event, AttemptFinished))]
        return commands

    patch.setattr(Node, "handle", handle)


def mixes_in_the_order_of_arrival(patch: Patch) -> None:
    original = Node.handle

    def handle(self: Node, event: Any, now: float) -> list[Any]:
        if isinstance(event, MixChanged):
            self.mix = event.mix
            return []
        return original(self, event, now)

    patch.setattr(Node, "handle", handle)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def reap_only_when_something_runs(patch: Patch) -> None:
    original = PrefillWorker.tick
    patch.setattr(PrefillWorker, "tick", lambda self, now: original(self, now) if self._in_step else [])


def never_ask_for_lost_tokens(patch: Patch) -> None:
    patch.setattr(Scheduler, "_is_forgotten", lambda self, flight, now: False)


# ── promises ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def promise_more_than_there_is(patch: Patch) -> None:
    patch.setattr(NodeView, "num_unbooked", property(lambda self: self.spec.num_blocks))


def return_credits_at_the_end_of_the_stream(patch: Patch) -> None:
    original = Scheduler._forget

    def forget(self: Scheduler, flight: Any) -> None:
        for node in self.view.nodes_of(flight.attempt) if flight.attempt else ():
            self.view.release(flight.attempt, node)
        original(self, flight)

    patch.setattr(Scheduler, "_forget", forget)


# ── streams and chance ───────────────────────────────────────────────────────────────────────────────────────────────


def keep_the_attempts_of_a_lost_gateway(patch: Patch) -> None:
    original = Scheduler._on_gateway_lost

    def on_gateway_lost(self: Scheduler, gateway: Any, now: float) -> list[Any]:
        original(self, gateway, now)
        return []

    patch.setattr(Scheduler, "_on_gateway_lost", on_gateway_lost)


def resume_before_fencing(patch: Patch) -> None:
    def on_attempt_lost(self: Streams, attempt: Any) -> list[Any]:
        stream = self._streams.get(request_of(attempt))
        if stream is None or stream.log is None:
            return []
        return [Tell(SCHEDULER, RequestResumed(stream.request.id, stream.log.tobytes()))]

    patch.setattr(Streams, "_on_attempt_lost", on_attempt_lost)


def streams_listen_to_old_attempts(patch: Patch) -> None:
    def keep(self: Streams, stream: Any, number: int, index: int) -> bool:
        return index >= stream.next and index not in stream.held

    patch.setattr(Streams, "_keep", keep)


def streams_pass_gaps_on(patch: Patch) -> None:
    original = Streams._deliver

    def deliver(self: Streams, stream: Any, now: float) -> list[Any]:
        if stream.held and stream.next not in stream.held:
            stream.next = min(stream.held)
        return original(self, stream, now)

    patch.setattr(Streams, "_deliver", deliver)


def streams_repeat_what_they_sent(patch: Patch) -> None:
    original = Streams._on_tokens

    def on_tokens(self: Streams, event: Any, now: float) -> list[Any]:
        outputs = original(self, event, now)
        late = [o for o in outputs if isinstance(o, Delivered) and number_of(event.attempts[0]) > 0]
        return [*late, *outputs]

    patch.setattr(Streams, "_on_tokens", on_tokens)


def a_sampler_with_a_memory(patch: Patch) -> None:
    original = FakeExecutor._next_token

    def next_token(self: FakeExecutor, row: Any, position: int) -> int:
        self._num_sampled = getattr(self, "_num_sampled", 0) + 1
        return (original(self, row, position) + (self._num_sampled % 3 == 0)) % self._vocab_size

    patch.setattr(FakeExecutor, "_next_token", next_token)


MUTANTS = (
    Mutant(expire_claimed_leases, (1, 3)),
    Mutant(free_claimed_blocks_at_drop, (0, 1)),
    Mutant(fetch_without_a_claim, (0, 1)),
    Mutant(follow_one_that_is_over, (177, 764)),
    Mutant(prefill_ignores_the_loss_of_a_reader, (0, 1)),
    Mutant(decode_ignores_the_loss_of_a_lender, (0, 1)),
    Mutant(a_failed_lender_says_nothing, (26, 60)),
    Mutant(free_blocks_that_a_fetch_still_fills, (8, 11)),
    Mutant(mark_instead_of_free_at_drop, (0, 1)),
    Mutant(free_a_row_that_is_in_a_step, (0, 1)),
    Mutant(free_a_prompt_that_is_in_a_step, (260, 297)),
    Mutant(reuse_blocks_under_the_same_generation, (0, 1), stale.draw),
    Mutant(keep_the_content_key_of_an_evicted_block, (0, 1)),
    Mutant(skip_the_generation, (0, 1), stale.draw),
    Mutant(skip_the_digest, (14, 36)),
    Mutant(decode_before_all_pieces_arrived, (1, 7)),
    Mutant(decode_on_a_failed_fetch, (14, 36)),
    Mutant(fill_the_blocks_in_another_order, (0, 1)),
    Mutant(deliver_some_messages_twice, (0, 2)),
    Mutant(a_node_keeps_no_tombstone, (4, 43)),
    Mutant(the_scheduler_keeps_no_tombstone, (16, 39)),
    Mutant(drop_without_an_answer, (0, 1)),
    Mutant(mixes_in_the_order_of_arrival, (0, 42)),
    Mutant(reap_only_when_something_runs, (34, 296)),
    Mutant(never_ask_for_lost_tokens, (11, 21), deaths.draw),
    Mutant(promise_more_than_there_is, (1, 2)),
    Mutant(return_credits_at_the_end_of_the_stream, (62, 154)),
    Mutant(keep_the_attempts_of_a_lost_gateway, (119, 959)),
    Mutant(resume_before_fencing, (5, 8)),
    Mutant(streams_listen_to_old_attempts, (5, 8)),
    Mutant(streams_pass_gaps_on, (4, 16)),
    Mutant(streams_repeat_what_they_sent, (0, 2)),
    Mutant(a_sampler_with_a_memory, (0, 1)),
)
"""With seeds that a search has found; a change to the scenarios or the machines may ask for others."""
