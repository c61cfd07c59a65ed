"""Mutants of migration: rows that are sealed, lent, taken over, or not taken and going on."""

from dataclasses import replace
from typing import Any

from cluster import node as node_room
from cluster.node import Node
from core.commands import Revoke
from core.lifecycle import DecodeState, PrefillState
from decode_worker import saving
from decode_worker import worker as worker_room
from decode_worker.batching import DecodeRow
from decode_worker.intake import Intake
from engine.blocks import BlockPool
from prefill_worker.worker import PrefillWorker
from tests.chaos.mutant import Mutant, Patch


def trust_the_digests_of_a_restored_row(patch: Patch) -> None:
    def let_go(row: DecodeRow, pool: BlockPool) -> None:
        num_sealed = row.num_sealed
        saving.let_go(row, pool)
        row.num_sealed = num_sealed

    patch.setattr(worker_room, "let_go", let_go)


def run_on_while_leaving(patch: Patch) -> None:
    def is_running(self: DecodeRow) -> bool:
        return self.end is None and self.state in (DecodeState.DECODING, DecodeState.LEAVING)

    patch.setattr(DecodeRow, "is_running", property(is_running))


def leave_the_newest_token_behind(patch: Patch) -> None:
    original = node_room._migrant_of

    def migrant_of(departure: Any) -> Any:
        return replace(original(departure), token_id=departure.row.answer[0])

    patch.setattr(node_room, "_migrant_of", migrant_of)


def take_a_claimed_row_back(patch: Patch) -> None:
    original = PrefillWorker.lose_peer

    def lose_peer(self: PrefillWorker, node: Any) -> list[Any]:
        commands: list[Any] = []
        lent = [p for p in self._attempts.values() if p.is_migrant and p.asked.decode_node == node]
        for prefill in [p for p in lent if p.state is PrefillState.CLAIMED]:
            self.leases.end(prefill.id)
            commands += [Revoke(prefill.id, node), *self._fail_handoff(prefill)]
        return commands + original(self, node)

    patch.setattr(PrefillWorker, "lose_peer", lose_peer)


def never_say_that_all_is_here(patch: Patch) -> None:
    original = Intake._release
    patch.setattr(Intake, "_release", lambda self, incoming, *, has_all=False: original(self, incoming))


def free_what_was_not_taken(patch: Patch) -> None:
    original = PrefillWorker._fail_handoff

    def fail_handoff(self: PrefillWorker, prefill: Any) -> list[Any]:
        commands = original(self, prefill)
        if prefill.id in self._returned:
            self._pool.free(prefill.table)
        return commands

    patch.setattr(PrefillWorker, "_fail_handoff", fail_handoff)


def have_the_executor_forget_what_is_only_offered(patch: Patch) -> None:
    original = PrefillWorker.lend_row

    def lend_row(self: PrefillWorker, migrant: Any, now: float) -> list[Any]:
        self._left.append(migrant.id)
        return original(self, migrant, now)

    patch.setattr(PrefillWorker, "lend_row", lend_row)


def keep_a_row_that_is_gone(patch: Patch) -> None:
    original = Node.handle

    def handle(self: Node, event: Any, now: float) -> list[Any]:
        lent = dict(self._lent_rows)
        commands = original(self, event, now)
        self._lent_rows = {**lent, **self._lent_rows}
        return commands

    patch.setattr(Node, "handle", handle)


MOVE_MUTANTS = (
    Mutant(trust_the_digests_of_a_restored_row, (22, 57)),
    Mutant(run_on_while_leaving, (80, 85)),
    Mutant(leave_the_newest_token_behind, (6, 15)),
    Mutant(take_a_claimed_row_back, (96, 268)),
    Mutant(never_say_that_all_is_here, (7, 24)),
    Mutant(free_what_was_not_taken, (13, 57)),
    Mutant(have_the_executor_forget_what_is_only_offered, (13, 57)),
    Mutant(keep_a_row_that_is_gone, (6, 15)),
)
"""With seeds that a search has found; a change to the scenarios or the machines may ask for others."""
