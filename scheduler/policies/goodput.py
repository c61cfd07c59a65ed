"""The pair of nodes with the best slack, and nobody where that would cost others theirs."""

from scheduler.config import SchedulerConfig
from scheduler.pair import Pair
from scheduler.policies.least_loaded import BUSY, unavailable
from scheduler.policies.policy import Demand, Refusal, Route
from scheduler.view import ClusterView

AHEAD = Refusal("in_line", "every node that could take it has enough to prefill for now")
CROWDED = Refusal("in_line", "with one more row the rows of every node that has room would miss their TPOT")
OFFLINE = Refusal("in_line", "no node has time to spare for the offline class")

PATIENCE_SHARE = 0.25
"""Of its target for the first token: where a long prompt harms a few rows wherever it goes, waiting longer for them to
end costs those behind it more than they are worth."""

CROWDED_SHARE = 2.0
"""The same where there are so many rows that each would miss its TPOT: one more let in then harms all of them, again
and again. A request that waited so long has missed its own target."""

OFFLINE_SLACK = 0.2
"""Of their TPOT, rows keep so much beside what the offline class adds."""


class Goodput:
    """Asks the predictor for the best pair, and sends the request there, or has it wait.

    It waits in the scheduler while nodes have `max_ahead_s` of prefill work before them, so that who comes later and is
    more urgent, or has had less, can still go first; and while it would push itself or rows that run beyond their TPOT:
    for at most `patience_s` or a quarter of its TTFT where its prompt is what harms them, up to twice its TTFT where
    there are too many rows. The offline class goes where nothing waits and rows keep `OFFLINE_SLACK`.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._max_ahead_s = config.max_ahead_s
        self._patience_s = config.patience_s

    def route(self, demand: Demand, view: ClusterView, now: float) -> Route | Refusal:
        """Nodes to avoid are tried last."""
        pair = view.predictor.best(demand, now)
        if pair is None:
            return unavailable(demand, view) or BUSY
        if demand.request.is_offline:
            return _route(pair) if _is_idle(pair, now) else OFFLINE
        if pair.queue_s > self._max_ahead_s:
            return AHEAD
        if pair.is_crowded and pair.is_proven and demand.waited_s < self._patience_of(demand, pair, view):
            return CROWDED
        return _route(pair)

    def _patience_of(self, demand: Demand, pair: Pair, view: ClusterView) -> float:
        slo = demand.request.slo
        if slo is None:
            return self._patience_s
        target = min(slo.tpot_s, pair.decode.strictest_s)
        if view.predictor.tpot.bound(pair.tpot_s, target) > target:
            return CROWDED_SHARE * slo.ttft_s
        return min(self._patience_s, PATIENCE_SHARE * slo.ttft_s)


def _is_idle(pair: Pair, now: float) -> bool:
    """Whether nobody would notice: no prompt waits, and all rows keep some of their TPOT with whatever is offline."""
    for node in (pair.prefill, pair.decode):
        if max(node.free_at, node.offline_free_at) - now > node.decode_s:
            return False
        more_s = node.delay_s(pair.num_tokens, pair.pairs) if node is pair.prefill else 0.0
        step_s = node.step_s(0.0, 0.0)
        if node.slos and node.with_offline_s(step_s, more_s, now) > (1.0 - OFFLINE_SLACK) * node.strictest_s:
            return False
    return True


def _route(pair: Pair) -> Route:
    return Route(pair.prefill.node, pair.decode.node, pair)
