"""Who is turned away, and with what: at the door in milliseconds, or after waiting for nodes that did not come."""

from collections.abc import Sequence

from core.errors import ErrorInfo
from core.kv import num_blocks
from scheduler.config import SchedulerConfig
from scheduler.flight import Flight, WaitingQueue
from scheduler.view import ClusterView


def refusal_at_the_door(
    flight: Flight, queue: WaitingQueue, view: ClusterView, config: SchedulerConfig, finished_at: Sequence[float]
) -> ErrorInfo | None:
    """Why a new request cannot be taken; None where it can. `finished_at` are the moments of the last finishes."""
    nodes = view.nodes.values()
    if not any(n.mix.accepts_prefill for n in nodes) or not any(n.mix.accepts_decode for n in nodes):
        return ErrorInfo("unavailable", "no node can take requests now", config.timers.dead_s)
    limit, needed = view.largest_request_blocks, whole_blocks(flight, view)
    if needed > limit:
        message = f"prompt and max_tokens need {needed} KV blocks; the largest nodes of both phases have {limit}"
        return ErrorInfo("request_too_large_for_cluster", message)
    if len(queue) >= config.max_queued_requests:
        message = f"the queue holds {config.max_queued_requests} requests already"
        return ErrorInfo("overloaded", message, _retry_after_s(queue, finished_at))
    if queue.num_tokens + flight.num_tokens > config.max_queued_tokens:
        message = f"the queue may hold {config.max_queued_tokens} prompt tokens"
        return ErrorInfo("overloaded", message, _retry_after_s(queue, finished_at))
    return None


def is_hopeless(flight: Flight, view: ClusterView, config: SchedulerConfig, now: float) -> bool:
    """Whether no nodes that are here could ever take it, and none have come for long enough."""
    fits = whole_blocks(flight, view) <= view.largest_request_blocks
    return not fits and now - flight.waiting_since > config.rejoin_wait_s


def whole_blocks(flight: Flight, view: ClusterView) -> int:
    """Blocks of the prompt and of the longest answer."""
    return num_blocks(flight.num_tokens + flight.num_left, view.block_size)


def _retry_after_s(queue: WaitingQueue, finished_at: Sequence[float]) -> float | None:
    """When the queue will have moved, at the rate of the last finishes."""
    if len(finished_at) < 2 or finished_at[-1] <= finished_at[0]:
        return None
    rate = (len(finished_at) - 1) / (finished_at[-1] - finished_at[0])
    return min(60.0, max(0.1, len(queue) / rate))
