"""The tokens of one step as lines of a batch: what the model and every attention kernel are told of them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one row: lines `start` to `end`, after `prefix` tokens that have KV; `row` is its table."""

    start: int
    end: int
    row: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Lines:
    """All tokens of a step without padding: single lines first, then chunks.

    A single line attends by itself (a decoded token, or a draft behind one); a chunk's lines attend together. Line i is
    the token at `positions[i]` of the row whose block table is `tables[rows[i]]`; it sees the positions up to its own.
    Its KV goes to place `offsets[i]` of block `block_ids[i]`. `max_context` is the longest context of a single line.
    Shapes: int64 [N] each; `tables` [R, W], every line padded with its row's own first block.
    """

    token_ids: Tensor
    positions: Tensor
    rows: Tensor
    tables: Tensor
    block_ids: Tensor
    offsets: Tensor
    num_single: int
    chunks: tuple[Chunk, ...]
    max_context: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def select(self, lines: Tensor, max_context: int) -> "Lines":
        """Some lines, each of which then attends by itself. Shapes: `lines` int64 [n]."""
        return Lines(
            self.token_ids[lines],
            self.positions[lines],
            self.rows[lines],
            self.tables,
            self.block_ids[lines],
            self.offsets[lines],
            len(lines),
            (),
            max_context,
        )
