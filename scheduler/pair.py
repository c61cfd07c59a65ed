"""A pair of nodes for one request, and how pairs are compared."""

from dataclasses import dataclass
from math import inf

from core.request import SLO
from scheduler.node_view import NodeView

RELAXED = SLO(10.0, 1.0)
"""What a request without an SLO is measured by where pairs are compared. It is never refused for it."""

ENOUGH_SLACK = 0.5
"""More slack than this is worth nothing: of two pairs that have as much, the one with less work is better."""

COST_WEIGHT = 0.2
"""What the whole TTFT target, spent in work or until the first token, weighs against slack."""

DOUBTED_SLACK = 0.1
"""So close to their TPOT, on either side, rows may miss it for whatever makes them slower: with more they are safe,
with less they have missed it anyway."""

AVOIDED = 100.0
"""Taken off the score of nodes on which an earlier try failed: they come last."""


def harm(num_rows: int, before: float, after: float) -> float:
    """What rows lose that a prompt makes slower, by their slack before and after: each counts as the request itself."""
    most = before if before < DOUBTED_SLACK else DOUBTED_SLACK
    least = after if after > -DOUBTED_SLACK else -DOUBTED_SLACK
    return num_rows * (most - least) if most > least else 0.0


@dataclass(slots=True)
class Pair:
    """What is predicted of a pair of nodes for one request.

    `hit_tokens` of the prompt are found, the other `num_tokens` take `prefill_s` after `queue_s`; the KV then needs
    `handoff_s` more until the row can run, which takes `tpot_s` for each token after the first one. `residents_s` is
    what each token of the rows there takes with it; `beside_s` of rows at the prefill node, where that is another.
    `slack` is the least of what is left of the request's TTFT and TPOT, as shares of their targets, at the safety
    quantile, and of the strictest TPOT there before its prompt is computed; `tpot_slack` is that of TPOT alone, of all
    rows, with it: below 0 somebody misses. The `score` is the slack, up to what is enough, less the harm to rows
    beside the prompt and what it costs. Rows are those that will be there in `after_s`, when the prefill ends at best.
    """

    prefill: NodeView
    decode: NodeView
    hit_tokens: int
    num_tokens: int
    pairs: float
    queue_s: float
    prefill_s: float
    handoff_s: float = 0.0
    tpot_s: float = 0.0
    residents_s: float = 0.0
    beside_s: float = 0.0
    slack: float = inf
    tpot_slack: float = inf
    score: float = -inf
    after_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """From now to the first token, which comes from the prefill node."""
        return self.queue_s + self.prefill_s

    @property
    def moves(self) -> bool:
        """Whether KV goes from one node to another."""
        return self.prefill is not self.decode

    @property
    def is_crowded(self) -> bool:
        """Whether this row, or one of those that are there, would miss its TPOT for there being so many."""
        return self.tpot_slack < 0.0 and self.decode.booked_rows + self.prefill.booked_rows > 0

    @property
    def is_proven(self) -> bool:
        """Whether both nodes' prices were held against steps that ran."""
        return self.prefill.belief.is_proven and self.decode.belief.is_proven
