"""Bounds and assumptions of the scheduler."""

from dataclasses import dataclass, field

from core.timers import Timers


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`expected_output_tokens` bounds the growth that a decode credit covers beyond the prompt: below `max_tokens` a
    node
    may be promised more than it has, and preempts when it comes to that. `max_skips` is how often one request may be
    overtaken, `max_overtaking` how far behind a blocked one the scheduler looks. `rejoin_wait_s` is how long a request
    waits for a node that can take it. `max_moves` bounds the rows that leave one node at a time. `rebalance_gap`: rows
    move where the promised shares of two decode nodes differ by more; None: only away from nodes that drain.
    """

    max_queued_requests: int = 1024
    max_queued_tokens: int = 4_194_304
    max_retries: int = 2
    max_losses: int = 8
    expected_output_tokens: int = 256
    max_overtaking: int = 8
    max_skips: int = 64
    retry_backoff_s: float = 0.1
    rejoin_wait_s: float = 20.0
    max_moves: int = 4
    rebalance_gap: float | None = None
    timers: Timers = field(default_factory=Timers)
