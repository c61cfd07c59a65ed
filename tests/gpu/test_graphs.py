"""Decode steps replayed as CUDA graphs against the same model run eagerly."""

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from core.kv import KVLayout, SlabShape
from engine.graphs import CudaRecorder, GraphedDecode
from engine.hf_config import read_model_config
from engine.lines import Chunk, Lines
from engine.memory import KVMemory
from engine.model import Decoder
from engine.weights import dummy_weights
from tests.gpu.conftest import BLOCK_SIZE, CONFIG

pytestmark = pytest.mark.gpu

WIDTH = 16
MAX_ROWS = 20
NUM_BLOCKS = MAX_ROWS * WIDTH + 1
CLOSE = 1e-5
"""Of the largest logit, in float32: a replay splits contexts as for the longest one."""


class Running:
    """A model with prefilled rows, which decodes eagerly or by replay over the same memory."""

    def __init__(self, folder: Path, device: str, triton_ops: ModuleType) -> None:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        config, self.device = read_model_config(folder), torch.device(device)
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, "float32")
        shape = SlabShape(layout, NUM_BLOCKS)
        memory = KVMemory(torch.zeros(shape.total_bytes, dtype=torch.uint8, device=device), shape)
        weights = dummy_weights(config, torch.float32, self.device)
        self.memory = memory
        self.model = Decoder(config, weights, memory, triton_ops.TritonOps(memory))
        order = torch.randperm(NUM_BLOCKS - 1, generator=torch.Generator().manual_seed(3)) + 1
        self.tables = order.view(MAX_ROWS, WIDTH).to(device)
        self.graphed = GraphedDecode(
            self.model.forward, MAX_ROWS, WIDTH, WIDTH * BLOCK_SIZE, self.device, CudaRecorder()
        )

    def prefill(self, length: int) -> None:
        """Every row, with tokens of its own."""
        rows = [row for row in range(MAX_ROWS) for _ in range(length)]
        chunks = tuple(Chunk(row * length, (row + 1) * length, row, 0) for row in range(MAX_ROWS))
        self.model.forward(replace(self.lines(rows, [*range(length)] * MAX_ROWS), num_single=0, chunks=chunks))

    def lines(self, rows: list[int], positions: list[int]) -> Lines:
        at, places = (torch.tensor(each, device=self.device) for each in (rows, positions))
        blocks = self.tables[at, places // BLOCK_SIZE]
        token_ids = (at * 31 + places * 17) % CONFIG["vocab_size"]
        return Lines(token_ids, places, at, self.tables, blocks, places % BLOCK_SIZE, len(rows), (), max(positions) + 1)


@pytest.fixture
def running(tmp_path: Path, device: str, triton_ops: ModuleType) -> Running:
    made = Running(tmp_path, device, triton_ops)
    made.prefill(30)
    return made


def assert_close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert (found - expected).abs().max() < CLOSE * expected.abs().max()


def test_replays_give_the_logits_of_eager_steps_and_write_the_same_keys_and_values(running: Running) -> None:
    for ahead, num in enumerate((1, 3, 4, 13, 20, 2, 13, 7, 20, 1)):
        lines = running.lines([(7 * row + ahead) % MAX_ROWS for row in range(num)], [30 + ahead] * num)
        expected = running.model.forward(lines)
        kept = running.memory.blocks.clone()
        for block, offset in zip(lines.block_ids.tolist(), lines.offsets.tolist(), strict=True):
            running.memory.blocks[block, :, :, :, offset] = torch.nan
        assert_close(running.graphed.run(lines), expected)
        assert (running.memory.blocks - kept).abs().max() < CLOSE * kept.abs().max()


def test_a_step_may_be_launched_while_the_logits_of_the_one_before_are_unread(running: Running) -> None:
    steps = [running.lines(list(range(8)), [30 + ahead] * 8) for ahead in range(4)]
    expected = [running.model.forward(lines) for lines in steps]
    found = [running.graphed.run(lines) for lines in steps]
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs)


def test_other_threads_may_use_the_device_while_a_step_is_recorded(running: Running) -> None:
    stop, failures = threading.Event(), []

    def copy() -> None:
        try:
            while not stop.is_set():
                torch.ones(1000).to(running.device, non_blocking=True).cpu()
        except RuntimeError as error:
            failures.append(error)

    other = threading.Thread(target=copy)
    other.start()
    try:
        for num in (1, 2, 4, 8, 16, 20):
            lines = running.lines(list(range(num)), [30] * num)
            assert_close(running.graphed.run(lines), running.model.forward(lines))
    finally:
        stop.set()
        other.join()
    assert not failures


def test_a_model_that_waits_for_the_device_is_run_eagerly_and_the_device_goes_on(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    def waiting(lines: Lines) -> Tensor:
        logits = running.model.forward(lines)
        return logits * float(logits.isfinite().all().item())

    graphed = GraphedDecode(waiting, MAX_ROWS, WIDTH, WIDTH * BLOCK_SIZE, running.device, CudaRecorder())
    lines = running.lines([0, 1], [30, 30])
    with caplog.at_level(logging.WARNING, "engine.graphs"):
        assert [graphed.run(lines) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert_close(running.graphed.run(lines), waiting(lines))
