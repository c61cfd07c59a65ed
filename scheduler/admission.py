"""Who is turned away, and with what: at the door in milliseconds, or after waiting for nodes that did not come."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from core.errors import ErrorInfo
from core.kv import num_blocks
from core.request import Request
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand
from scheduler.flight import Flight, spread_of
from scheduler.pair import Pair
from scheduler.queue import WaitingQueue
from scheduler.view import ClusterView

RETRY_S = (0.1, 60.0)

GIVING_WAY_S = 0.1
"""Until the offline class has given its blocks back: a step and four messages."""


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


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request that is at the door may expect: when its first token comes, and the time of each further one.

    `alone_s` is the first token's time if nobody else were there. `is_proven`: by prices that steps have confirmed.
    `is_idle`: nodes that have nothing to do would serve it; then no past error counts, nor a slow handoff, or nothing
    would ever show that they are over.
    """

    ttft_s: float
    alone_s: float
    tpot_s: float
    is_proven: bool
    is_idle: bool = False


def outlook(flight: Flight, demand: Demand, queue: WaitingQueue, view: ClusterView, now: float) -> Outlook:
    """By the best pair now, behind those who wait and go first, as fast as the line moves, and once enough rows have
    ended to make room."""
    pair = view.predictor.best(demand, now)
    tokens = queue.tokens_before(flight) if len(queue) else 0.0
    before_s = tokens / _tokens_per_s(view) if tokens else 0.0
    num_before = len(queue) * tokens / queue.num_tokens if tokens else 0.0
    if num_before and (pace := queue.starts_per_s(now)) is not None:
        before_s = max(before_s, (num_before + 1.0) / pace)
    if pair is None:
        return _without_room(demand, view, before_s, num_before)
    if not len(queue) and not pair.prefill.bookings and not pair.decode.bookings:
        return Outlook(pair.ttft_s, pair.prefill_s, pair.residents_s, pair.is_proven, is_idle=True)
    target = demand.request.slo.tpot_s if demand.request.slo is not None else inf
    rows_s = _until_room_s(pair, num_before, view, target) if demand.decodes else 0.0
    tpot_s = min(pair.tpot_s, target / (1.0 + max(0.0, view.predictor.tpot.safety))) if rows_s else pair.tpot_s
    return Outlook(max(before_s, rows_s) + pair.ttft_s, pair.prefill_s, tpot_s, pair.is_proven)


def unattainable(request: Request, demand: Demand, seen: Outlook, view: ClusterView) -> ErrorInfo | None:
    """Why it would not get what it wants, at the safety quantile; None where it should, or nothing proven says so.

    An answer is as long as those of its tenant and class are on average.
    """
    if request.is_offline or not seen.is_proven:
        return None
    predictor, slo = view.predictor, request.slo
    first_s, each_s = seen.ttft_s, seen.tpot_s if demand.decodes else 0.0
    if not seen.is_idle:
        first_s = predictor.ttft.bound(first_s, slo.ttft_s if slo is not None else 0.0)
        each_s = predictor.tpot.bound(each_s, slo.tpot_s if slo is not None and demand.decodes else 0.0)
    if slo is not None and first_s > slo.ttft_s:
        text = f"its first token would come after {first_s:.3g} s, and its SLO is {slo.ttft_s:.3g} s"
        return _refused(request, text, None if seen.alone_s > slo.ttft_s else first_s - slo.ttft_s)
    if slo is not None and each_s > slo.tpot_s:
        text = f"its tokens would take {each_s:.3g} s each, and its SLO is {slo.tpot_s:.3g} s"
        return _refused(request, text, None)
    if not seen.is_idle:  # a lax SLO makes no deadline tight: here errors are relative to what is predicted
        first_s, each_s = predictor.ttft.bound(seen.ttft_s, 0.0), predictor.tpot.bound(each_s and seen.tpot_s, 0.0)
    end_s = first_s + each_s * max(0.0, demand.output_tokens - 1.0)
    if end_s > request.deadline_s:
        text = f"its answer would be complete after {end_s:.3g} s, and its deadline is {request.deadline_s:.3g} s"
        return _refused(request, text, seen.ttft_s - seen.alone_s or None)
    return None


def is_hopeless(flight: Flight, view: ClusterView, config: SchedulerConfig, now: float) -> bool:
    """Whether no nodes that are here could ever take it, and none have come for long enough."""
    fits = whole_blocks(flight, view) <= view.largest_request_blocks
    return not fits and now - flight.waiting_since > config.rejoin_wait_s


def whole_blocks(flight: Flight, view: ClusterView) -> int:
    """Blocks of the prompt and of the longest answer."""
    return num_blocks(flight.num_tokens + flight.num_left, view.block_size)


def _refused(request: Request, text: str, retry_after_s: float | None) -> ErrorInfo:
    """With a time to come back where that may help; spread, so that those refused together do not return together."""
    if retry_after_s is not None:
        retry_after_s = min(RETRY_S[1], max(RETRY_S[0], retry_after_s)) * spread_of(request.id)
    return ErrorInfo("slo_unattainable", text, retry_after_s)


def _without_room(demand: Demand, view: ClusterView, before_s: float, num_before: float) -> Outlook:
    """No pair has room: rows must end first, one for each request that waits, and one more; or the offline class gives
    way."""
    nodes = [node for node in view.nodes.values() if node.mix.accepts_prefill]
    num = demand.prefill_tokens
    alone_s = min((node.prefill_s(num, num * num / 2) for node in nodes), default=0.0)
    rows = [node for node in view.nodes.values() if node.mix.accepts_decode]
    tpot_s = min((node.step_s(num, 0.0) for node in rows), default=0.0)
    if any(node.booked_offline for node in rows):
        waits_s = max(before_s, GIVING_WAY_S)
    else:
        waits_s = max(before_s, (num_before + 1.0) / max(1e-9, _ends_per_s(view)))
    proven = any(node.belief.is_proven for node in nodes) and any(node.belief.is_proven for node in rows)
    return Outlook(waits_s + alone_s, alone_s, tpot_s, proven)


def _until_room_s(pair: Pair, num_before: float, view: ClusterView, tpot_s: float) -> float:
    """Until so many rows of the pair's decode node have ended that one more breaks no TPOT; 0 where it breaks none now,
    or would with all of them gone."""
    node, predictor = pair.decode, view.predictor
    excess_s = max(
        predictor.tpot.bound(pair.tpot_s, tpot_s) - tpot_s if tpot_s < inf else 0.0,
        predictor.tpot.bound(pair.residents_s, node.strictest_s) - node.strictest_s if node.slos else 0.0,
    )
    if excess_s <= 0.0 or excess_s > node.rows_s:
        return 0.0
    num_rows = max(1.0, excess_s / node.rows_s * node.booked_rows)
    here_s = num_rows * node.answer_s / node.booked_rows
    return max(here_s, (num_before + num_rows) / max(1e-9, _ends_per_s(view)))


def _tokens_per_s(view: ClusterView) -> float:
    """Prompt tokens that all nodes together compute in a second."""
    nodes = [node for node in view.nodes.values() if node.mix.accepts_prefill]
    return sum(1.0 / max(1e-12, node.queue_s(1)) for node in nodes) or 1e-9


def _ends_per_s(view: ClusterView) -> float:
    """Answers that end in a second."""
    return sum(node.booked_rows / node.answer_s for node in view.nodes.values() if node.mix.accepts_decode)


def _retry_after_s(queue: WaitingQueue, finished_at: Sequence[float]) -> float | None:
    """When the queue will have moved, at the rate of the last finishes."""
    if len(finished_at) < 2 or finished_at[-1] <= finished_at[0]:
        return None
    rate = (len(finished_at) - 1) / (finished_at[-1] - finished_at[0])
    return min(60.0, max(0.1, len(queue) / rate))
