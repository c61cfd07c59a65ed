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

    `refuses_unattainable`: turn away at the door who would miss SLO or deadline, by what is predicted with
    `safety_quantile`. `learns_lengths`: credits cover the growth that answers of the same tenant and class had, once
    some were seen. `max_ahead_s` is how much prefill work a node may have before it that predicts; what is beyond waits
    here, where it can still be put in order. `patience_s` is how long a request waits, at most, rather than break the
    TPOT of rows. A request without an SLO is ordered as if its first token were due after `due_s`. `tenant_shares` are
    weights of tenants, 1 for those not named. KV moves at `handoff_bytes_per_s` after `handoff_latency_s`, until it is
    learned.
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
    refuses_unattainable: bool = True
    safety_quantile: float = 0.9
    learns_lengths: bool = True
    max_ahead_s: float = 0.3
    patience_s: float = 5.0
    due_s: float = 10.0
    tenant_shares: tuple[tuple[str, float], ...] = ()
    handoff_bytes_per_s: float = 2e9
    handoff_latency_s: float = 0.002
