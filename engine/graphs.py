"""Recorded decode steps: one launch replays what the model does for a step of single lines, a CUDA graph on a GPU.

A step of an 8B model is some 300 launches, which take the host longer than the device needs for them; a replay is one.
Only the number of lines is fixed in a recording, so steps are padded to one of a few numbers, and each is recorded when
first needed.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engine.lines import Lines

Forward = Callable[[Lines], Tensor]
"""The model: logits of all lines. It must read its lines' tensors and decide nothing by their values on the host, and
store nothing for lines whose block is negative, as `TritonOps` does."""

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records what a function has a device do. What it reads and where it writes stays the same in each replay."""

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Run `compute` once, record it, and return what replays it. Raises RuntimeError where that cannot be done."""


class CudaRecorder:
    """Records CUDA graphs.

    Owns: the memory pool that all its recordings share; at most one may run at a time, as on one stream they do.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`. The first run, outside the graph, compiles kernels and lets libraries allocate."""
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            compute()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads (a transfer, a copy to the host) may call CUDA while this one records.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        return graph.replay


@dataclass(frozen=True, slots=True)
class _Recording:
    """A recorded number of lines. `lines` are the buffers that it reads, `logits` what it writes."""

    lines: Lines
    logits: Tensor
    replay: Callable[[], None]


class GraphedDecode:
    """Runs steps of single lines by replaying recordings.

    Padding lines take token 0 at position 0 of a row of their own, whose table names block 0; they read what lies
    there, store nothing (their block is -1), and their logits are dropped.
    Owns: the buffers that recordings read and write, and the recordings, by padded number of lines.
    """

    def __init__(
        self,
        forward: Forward,
        max_rows: int,
        table_width: int,
        max_context: int,
        device: torch.device,
        recorder: Recorder | None,
    ) -> None:
        """`table_width` is that of `Lines.tables`; `max_context` the longest that a line can have, by which the kernels
        split contexts in every replay. Without a recorder nothing is served.
        """
        self._forward = forward
        self._recorder = recorder
        self._sizes = padded_sizes(max_rows)
        self._max_context = max_context
        single, places = torch.zeros(max_rows, dtype=torch.int64, device=device), torch.arange(max_rows, device=device)
        nowhere = torch.full_like(single, -1)
        tables = torch.zeros(max_rows, table_width, dtype=torch.int64, device=device)
        self._buffers = Lines(
            single, single.clone(), places, tables, nowhere, single.clone(), max_rows, (), max_context
        )
        self._logits = torch.empty(0, device=device)
        self._recordings: dict[int, _Recording] = {}

    def run(self, lines: Lines) -> Tensor | None:
        """Logits of all lines, the caller's own; None where no recording serves such a step: it is to be run eagerly.

        Shapes: -> [N, vocab].
        """
        if self._recorder is None or not self._can_serve(lines):
            return None
        size = self._sizes[bisect_left(self._sizes, len(lines))]
        self._fill(lines, size)
        recording = self._recordings.get(size) or self._record(size, self._recorder)
        if recording is None:
            return None
        recording.replay()
        return recording.logits[: len(lines)].clone()

    def _can_serve(self, lines: Lines) -> bool:
        return (
            0 < len(lines) <= self._sizes[-1]
            and lines.num_single == len(lines)
            and lines.tables.shape[1] == self._buffers.tables.shape[1]
            and lines.max_context <= self._max_context
        )

    def _fill(self, lines: Lines, size: int) -> None:
        """Copy a step into the buffers' first lines, and make padding of those up to `size`."""
        held, num = self._buffers, len(lines)
        for target, given, padding in (
            (held.token_ids, lines.token_ids, 0),
            (held.positions, lines.positions, 0),
            (held.block_ids, lines.block_ids, -1),
            (held.offsets, lines.offsets, 0),
        ):
            target[:num].copy_(given)
            target[num:size].fill_(padding)
        torch.index_select(lines.tables, 0, lines.rows, out=held.tables[:num])
        held.tables[num:size].zero_()

    def _record(self, size: int, recorder: Recorder) -> _Recording | None:
        """Record a number of lines; a failure is logged and ends recording, for what fails for one fails for all."""
        held = self._buffers
        lines = replace(
            held,
            token_ids=held.token_ids[:size],
            positions=held.positions[:size],
            rows=held.rows[:size],
            block_ids=held.block_ids[:size],
            offsets=held.offsets[:size],
            num_single=size,
        )

        def compute() -> None:
            self._keep(self._forward(lines))

        try:
            replay = recorder.record(compute)
        except RuntimeError as error:
            log.warning("decode steps run eagerly: %d lines could not be recorded: %s", size, error)
            self._recorder = None
            self._recordings.clear()
            return None
        self._recordings[size] = _Recording(lines, self._logits[:size], replay)
        return self._recordings[size]

    def _keep(self, logits: Tensor) -> None:
        """Copy logits out of the recordings' shared memory, into which the next recording would write its own.

        The buffer is made by the first, unrecorded run, for as many lines as there may ever be.
        """
        if not len(self._logits):
            self._logits = logits.new_empty((self._sizes[-1], *logits.shape[1:]))
        self._logits[: len(logits)].copy_(logits)


def padded_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of lines that are recorded: few where one more line is much, else every eighth, and the largest."""
    sizes = [size for size in (1, 2, 4) if size < max_rows]
    return (*sizes, *range(8, max_rows, 8), max_rows)
