"""Replayed decode steps, with a recorder that runs the function again: padding, buffers, what is not served.

It can catch what is copied wrongly or too late, and what leaks from padding. That a CUDA graph does what the function
did is for `tests/gpu`.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.graphs import GraphedDecode, padded_sizes
from engine.lines import Chunk, Lines

VOCAB = 11
WIDTH = 4
MAX_ROWS = 12


class Rerun:
    """A recorder whose replays call the function. `fails` makes it refuse."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.num_recorded = 0

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.num_recorded += 1
        compute()
        return compute


class Model:
    """Logits that depend on everything a line is made of; keeps the lines it was given and the places it stored to."""

    def __init__(self) -> None:
        self.seen: list[Lines] = []
        self.stored: set[tuple[int, int]] = set()

    def __call__(self, lines: Lines) -> Tensor:
        self.seen.append(lines)
        places = zip(lines.block_ids.tolist(), lines.offsets.tolist(), strict=True)
        self.stored |= {(block, offset) for block, offset in places if block >= 0}
        tables = lines.tables[lines.rows].double() @ torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
        line = lines.token_ids + 3 * lines.positions + 7 * tables + 1000 * lines.offsets
        return line[:, None] * torch.arange(1.0, VOCAB + 1, dtype=torch.float64)


def step(num: int, seed: int = 0, num_tables: int = 20) -> Lines:
    """A step of single lines in rows that are not in order."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randperm(num_tables, generator=made)[:num]
    tables = torch.randint(1, 99, (num_tables, WIDTH), generator=made)
    positions = torch.randint(0, 16, (num,), generator=made)
    tokens = torch.randint(0, 50, (num,), generator=made)
    blocks = tables[rows, positions // 4]
    return Lines(tokens, positions, rows, tables, blocks, positions % 4, num, (), int(positions.max()) + 1)


@pytest.fixture
def model() -> Model:
    return Model()


def graphed(model: Model, recorder: Rerun | None) -> GraphedDecode:
    return GraphedDecode(model, MAX_ROWS, WIDTH, WIDTH * 4, torch.device("cpu"), recorder)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (12, (1, 2, 4, 8, 12)),
        (33, (1, 2, 4, 8, 16, 24, 32, 33)),
    ],
)
def test_steps_are_padded_to_few_numbers_of_lines(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert padded_sizes(max_rows) == sizes


@pytest.mark.parametrize("num", range(1, MAX_ROWS + 1))
def test_a_replayed_step_gives_the_logits_of_an_eager_one(num: int, model: Model) -> None:
    found = graphed(model, Rerun()).run(step(num))
    assert found is not None
    assert torch.equal(found, Model()(step(num)))


def test_replays_read_what_each_step_brings_and_each_number_of_lines_is_recorded_once(model: Model) -> None:
    recorder = Rerun()
    decode = graphed(model, recorder)
    for seed, num in enumerate((5, 7, 8, 6, 1, 12, 2, 5)):
        found = decode.run(step(num, seed))
        assert found is not None and torch.equal(found, Model()(step(num, seed)))
    assert recorder.num_recorded == 4  # 8, 1, 12, 2
    assert {len(lines) for lines in model.seen} == {8, 1, 12, 2}


def test_padding_stores_nothing_and_reads_one_token_of_block_zero(model: Model) -> None:
    decode = graphed(model, Rerun())
    decode.run(step(8, 1))
    model.stored.clear()
    given = step(5, 2)
    decode.run(given)
    assert model.stored == set(zip(given.block_ids.tolist(), given.offsets.tolist(), strict=True))
    padded = model.seen[-1]
    assert padded.block_ids[5:].tolist() == [-1] * 3 and not padded.positions[5:].any()
    assert not padded.tables[padded.rows[5:]].any() and not padded.token_ids[5:].any()


def test_logits_are_the_callers_own(model: Model) -> None:
    decode = graphed(model, Rerun())
    first = decode.run(step(5, 1))
    assert first is not None
    before = first.clone()
    decode.run(step(6, 2))
    decode.run(step(12, 3))
    assert torch.equal(first, before)


def test_every_recording_splits_contexts_for_the_longest_one(model: Model) -> None:
    decode = graphed(model, Rerun())
    decode.run(replace(step(5), max_context=2))
    assert {lines.max_context for lines in model.seen} == {WIDTH * 4}


def test_tables_may_grow_and_move_between_steps(model: Model) -> None:
    decode = graphed(model, Rerun())
    for num_tables in (20, 40):
        found = decode.run(step(5, 4, num_tables))
        assert found is not None and torch.equal(found, Model()(step(5, 4, num_tables)))


@pytest.mark.parametrize(
    "lines",
    [
        replace(step(5), num_single=3, chunks=(Chunk(3, 5, 0, 0),)),
        step(MAX_ROWS + 1),
        replace(step(5), tables=torch.zeros(20, WIDTH + 1, dtype=torch.int64)),
        replace(step(5), max_context=WIDTH * 4 + 1),
        step(5).select(torch.empty(0, dtype=torch.int64), 0),
    ],
    ids=["chunks", "too many lines", "another width of tables", "a longer context", "no lines"],
)
def test_steps_that_do_not_fit_are_left_to_be_run_eagerly(lines: Lines, model: Model) -> None:
    recorder = Rerun()
    assert graphed(model, recorder).run(lines) is None
    assert not model.seen and not recorder.num_recorded


def test_without_a_recorder_nothing_is_served(model: Model) -> None:
    assert graphed(model, None).run(step(5)) is None
    assert not model.seen


def test_what_cannot_be_recorded_is_run_eagerly_from_then_on_and_logged_once(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Rerun()
    decode = graphed(model, recorder)
    assert decode.run(step(5)) is not None
    recorder.fails = True
    with caplog.at_level(logging.WARNING, "engine.graphs"):
        assert [decode.run(step(num)) for num in (2, 1, 5)] == [None] * 3
    assert len(caplog.records) == 1
    assert "2 lines could not be recorded: operation not permitted" in caplog.text
