"""Mutants of rows: drafts, rows that are saved and come back, rows that fail alone, blocks that are copied on write."""

from dataclasses import replace
from typing import Any

from core.events import AttemptEnd
from core.lifecycle import DecodeState
from core.request import SamplingParams
from core.step import StepResult
from decode_worker import planning
from decode_worker import worker as worker_room
from decode_worker.batching import DecodeRow, DecodeRows
from decode_worker.config import DecodeConfig
from decode_worker.emission import Emission
from decode_worker.rows import Rows, StepRows
from decode_worker.saving import let_go, save
from decode_worker.worker import DecodeWorker
from engine import fake
from engine.blocks import BlockPool
from engine.fake import FakeExecutor
from engine.fake_truth import sampled_token
from tests.chaos.mutant import Mutant, Patch

# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def forget_the_positions_of_drafts(patch: Patch) -> None:
    original = DecodeWorker._take

    def take(self: DecodeWorker, row: Any, tokens: list[Any], emission: Any, now: float) -> bool:
        is_over = original(self, row, tokens, emission, now)
        row.num_context -= len(tokens) - 1
        return is_over

    patch.setattr(DecodeWorker, "_take", take)


def take_every_draft_for_confirmed(patch: Patch) -> None:
    original = FakeExecutor._sample

    def sample(self: FakeExecutor, attempt: Any, row: Any) -> list[int]:
        won = original(self, attempt, row)
        return won + [0] * (self._num_tried[attempt] + 1 - len(won))

    patch.setattr(FakeExecutor, "_sample", sample)


def run_on_behind_drafts(patch: Patch) -> None:
    def wants_token(self: DecodeRow) -> bool:
        return self.is_running and self.num_output + self.num_in_flight < self.request.sampling.max_tokens

    patch.setattr(DecodeRow, "wants_token", property(wants_token))


def guess_without_blocks(patch: Patch) -> None:
    patch.setattr(planning, "grow_for_drafts", lambda row, num_drafts, *rest: num_drafts)


def guess_beyond_the_answer(patch: Patch) -> None:
    def take(self: DecodeWorker, row: Any, tokens: list[Any], emission: Any, now: float) -> bool:
        row.num_context += len(tokens) - 1
        for taken in tokens:
            emission.add(row.id, row.num_output, taken, None, None)
            row.answer.append(taken[0])
        return row.num_output >= row.request.sampling.max_tokens

    patch.setattr(DecodeWorker, "_take", take)


# ── rows that are saved ──────────────────────────────────────────────────────────────────────────────────────────────


def free_saved_blocks_before_the_step_is_over(patch: Patch) -> None:
    def save_and_free(rows: DecodeRows, row: DecodeRow, step: int, pool: BlockPool) -> None:
        save(rows, row, step, pool)
        let_go(row, pool)

    patch.setattr(planning, "save", save_and_free)


def keep_saved_blocks(patch: Patch) -> None:
    patch.setattr(worker_room, "let_go", lambda row, pool: None)


def save_a_row_that_is_in_a_step(patch: Patch) -> None:
    original = planning.Planner._give_way

    def give_way(self: Any, plan: Any, victim: Any) -> None:
        patched, victim.num_in_flight = victim.num_in_flight, 0
        last_step, victim.last_step = victim.last_step, -1
        original(self, plan, victim)
        victim.num_in_flight = patched
        if victim.state is not DecodeState.SAVED:
            victim.last_step = last_step

    patch.setattr(planning.Planner, "_give_way", give_way)


def save_more_than_there_is_room_for(patch: Patch) -> None:
    def may_save(row: DecodeRow, num_saved: int, pool: BlockPool, config: DecodeConfig) -> bool:
        return config.costs is not None and row.join is None

    patch.setattr(planning, "may_save", may_save)


def lose_the_last_slot_of_a_saved_row(patch: Patch) -> None:
    def copy_out(self: FakeExecutor) -> None:
        for attempt, row in self._leaving.items():
            data = self.memory.gather(row.table, row.num_computed)
            self._saved[attempt] = (row, data[:-8] + bytes(8))

    patch.setattr(FakeExecutor, "_copy_out", copy_out)


def forget_the_rows_that_a_failed_step_saved(patch: Patch) -> None:
    def fail_step(self: DecodeWorker, step: int) -> list[Any]:
        held: StepRows = self._rows.close_step(step)
        for row in held.running:
            row.num_drafts = 0
        return [c for row in held.running for c in self._rows.end(row, AttemptEnd.STEP_FAILED)]

    patch.setattr(DecodeWorker, "fail_step", fail_step)


def say_nothing_of_a_dropped_row_that_was_saved(patch: Patch) -> None:
    original = Rows.settle

    def settle(self: Rows, row: DecodeRow) -> list[Any]:
        was_saved = row.num_saved > 0
        commands = original(self, row)
        return [] if was_saved else commands

    patch.setattr(Rows, "settle", settle)


# ── copies, choices, failures, scores ────────────────────────────────────────────────────────────────────────────────


def copy_nothing_on_copy_on_write(patch: Patch) -> None:
    patch.setattr(FakeExecutor, "_copy_in", lambda self, row, source: None)


def keep_a_source_block_unheld(patch: Patch) -> None:
    def hold(self: BlockPool, key: bytes) -> tuple[int, ...]:
        block = self.share((key,))
        self.free(block)
        return block

    patch.setattr(BlockPool, "hold", hold)
    patch.setattr(BlockPool, "let_go", lambda self, blocks: None)


def choices_share_their_randomness(patch: Patch) -> None:
    def without_choice(slots: bytes, sampling: SamplingParams, position: int, vocab_size: int) -> int:
        return sampled_token(slots, replace(sampling, choice=0), position, vocab_size)

    patch.setattr(fake, "sampled_token", without_choice)


def go_on_with_a_row_that_failed(patch: Patch) -> None:
    original = DecodeWorker.finish_step

    def finish_step(self: DecodeWorker, result: StepResult, now: float) -> list[Any]:
        known = tuple(attempt for attempt in result.failed if attempt in self._rows)
        attempts, tokens = (*result.attempts, *known), (*result.token_ids, *(0 for _ in known))
        logprobs = (*result.logprobs, *(None for _ in known)) if result.logprobs else ()
        changed = replace(result, attempts=attempts, token_ids=tokens, logprobs=logprobs, failed=())
        return original(self, changed, now)

    patch.setattr(DecodeWorker, "finish_step", finish_step)


def scores_in_another_order(patch: Patch) -> None:
    original = Emission.event

    def event(self: Emission) -> Any:
        found = original(self)
        return replace(found, logprobs=found.logprobs[::-1])

    patch.setattr(Emission, "event", event)


ROW_MUTANTS = (
    Mutant(forget_the_positions_of_drafts, (2, 5)),
    Mutant(take_every_draft_for_confirmed, (2, 4)),
    Mutant(run_on_behind_drafts, (2, 5)),
    Mutant(guess_without_blocks, (2, 4)),
    Mutant(guess_beyond_the_answer, (0, 1)),
    Mutant(free_saved_blocks_before_the_step_is_over, (2, 5)),
    Mutant(keep_saved_blocks, (2, 5)),
    Mutant(save_a_row_that_is_in_a_step, (2, 5)),
    Mutant(save_more_than_there_is_room_for, (15, 22)),
    Mutant(lose_the_last_slot_of_a_saved_row, (2, 5)),
    Mutant(forget_the_rows_that_a_failed_step_saved, (37, 45)),
    Mutant(say_nothing_of_a_dropped_row_that_was_saved, (6, 28)),
    Mutant(copy_nothing_on_copy_on_write, (1, 2)),
    Mutant(keep_a_source_block_unheld, (4, 6)),
    Mutant(choices_share_their_randomness, (0, 1)),
    Mutant(go_on_with_a_row_that_failed, (37, 50)),
    Mutant(scores_in_another_order, (2, 3)),
)
"""With seeds that a search has found; a change to the scenarios or the machines may ask for others."""
