"""What this request would get from each pair of nodes: when its first token comes, and how fast those after it."""

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from core.ids import NodeId
from core.request import SLO
from core.stats import Timing
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand
from scheduler.margins import Margin
from scheduler.node_view import NodeView
from scheduler.pair import AVOIDED, COST_WEIGHT, ENOUGH_SLACK, RELAXED, Pair, harm
from scheduler.search import best_pair

if TYPE_CHECKING:
    from scheduler.view import ClusterView

HANDOFF_SLOWER, HANDOFF_FASTER = 0.03, 0.3
"""What of a handoff's error is learned; the first ones count as much as all before them. A handoff is slower for those
beside it, never faster than its link, so the fast ones say what the link does."""

HANDOFF_BOUNDS = (0.02, 50.0)


@dataclass(frozen=True, slots=True)
class Expected:
    """What was predicted for an attempt, to be held against what it gets. `ttft_s` counts from the arrival.

    `handoff_s`: with the link to itself, had nothing been learned of it; whether it `waits_for_link`. `most_tpot_s`: so
    much its tokens might take before nobody more was let in beside it.
    """

    slo: SLO | None
    ttft_s: float
    tpot_s: float
    handoff_s: float
    prefill: NodeId
    decode: NodeId
    hit_tokens: int
    most_tpot_s: float = inf
    waits_for_link: bool = False
    era: int = 0


class Predictor:
    """Predicts, and learns how far off it was.

    Owns: the margins of TTFT and TPOT, and the era of their errors. What it knows of nodes stands in the view: prices
    that are corrected by each report, queues by bookings and reports, prefixes by bookings and by what requests found.
    """

    def __init__(self, config: SchedulerConfig, view: "ClusterView") -> None:
        self._config = config
        self._view = view
        self.ttft = Margin(config.safety_quantile)
        self.tpot = Margin(config.safety_quantile)
        self._era = 0

    # ── one pair ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def pair(
        self, demand: Demand, prefill: NodeView, decode: NodeView, now: float, after_s: float | None = None
    ) -> Pair:
        """What is predicted for this request on these two nodes. `after_s`: from now to the moment whose rows count;
        None: when the prefill will end there."""
        self._view.refresh()
        depth, mask = self._view.prefixes.deepest(demand.prefixes)
        found = self._prefill(demand, prefill, depth, mask, now)
        found.after_s = found.ttft_s if after_s is None else after_s
        if demand.decodes:
            self._decode(demand, found, decode, now)
        self._judge(demand, found, now)
        return found

    def _prefill(self, demand: Demand, node: NodeView, depth: int, mask: int, now: float) -> Pair:
        """The prefill half."""
        total = demand.prefill_tokens
        hit = 0
        if demand.prompt and demand.prompt in node.prompts:
            hit = total - 1
        elif depth:
            if not node.bit & mask:
                depth = self._view.prefixes.depth(demand.prefixes, node.bit, depth)
            hit = min(depth * demand.stride_tokens, total - 1)
        num = total - hit
        pairs = num * (hit + num / 2)
        return Pair(node, node, hit, num, pairs, node.wait_s(now), node.prefill_s(num, pairs))

    def _decode(self, demand: Demand, pair: Pair, node: NodeView, now: float) -> None:
        """The decode half: with the rows that will be there when the prefill ends."""
        context = demand.prefill_tokens + demand.output_tokens / 2
        step_s = node.step_s(context, pair.after_s)
        pair.decode = node
        pair.tpot_s = pair.residents_s = node.slowed(step_s, now)
        if node is pair.prefill:
            if node.booked_rows:
                pair.residents_s = node.slowed(step_s, now, node.delay_s(pair.num_tokens, pair.pairs))
        else:
            if pair.prefill.booked_rows:
                beside = pair.prefill
                step_s = beside.step_s(0.0, pair.after_s) - beside.row_s
                pair.beside_s = beside.slowed(step_s, now, beside.delay_s(pair.num_tokens, pair.pairs))
            pair.handoff_s = self._handoff_s(demand, pair, node, now)
            if node.num_handoffs:  # what was only guessed harms nobody
                pair.tpot_s += pair.handoff_s / max(1.0, demand.output_tokens - 1.0)

    def _handoff_s(self, demand: Demand, pair: Pair, decode: NodeView, now: float) -> float:
        """What is left to move when the prefill is over: what its last step computed, the rest went before; or all that
        waits for the link of either node by then."""
        free_s = max(pair.prefill.sends_at, decode.brings_at) - now - pair.ttft_s
        factor, all_s = decode.handoff_factor, self._moved_s(demand.prefill_tokens, decode)
        return max(factor * self._alone_s(pair), free_s + factor * (self._config.handoff_latency_s + all_s))

    def _alone_s(self, pair: Pair) -> float:
        """What the last step computed, over a link that does nothing else, had nothing been learned of it."""
        tail = min(pair.num_tokens, pair.prefill.budget_tokens)
        return self._config.handoff_latency_s + self._moved_s(tail, pair.decode)

    def _moved_s(self, tokens: int, decode: NodeView) -> float:
        return tokens * decode.kv_bytes / self._config.handoff_bytes_per_s

    def book_handoff(self, demand: Demand, pair: Pair, now: float) -> None:
        """All of the prompt's KV is going to take both links."""
        node = pair.decode
        node.note_handoff(pair.prefill, self._moved_s(demand.prefill_tokens, node) * node.handoff_factor, now)

    def _judge(self, demand: Demand, pair: Pair, now: float) -> None:
        """Slack and score."""
        slo, node = demand.request.slo or RELAXED, pair.decode
        first_s = demand.waited_s + pair.queue_s + pair.prefill_s
        pair.slack = _slack(self.ttft, first_s, slo.ttft_s)
        cost = COST_WEIGHT * (first_s + pair.prefill_s) / slo.ttft_s
        if demand.decodes:
            of_tokens = _slack(self.tpot, pair.tpot_s, slo.tpot_s)
            of_rows = _slack(self.tpot, pair.residents_s, node.strictest_s)
            beside, strictest_s = pair.prefill, pair.prefill.strictest_s
            of_beside = _slack(self.tpot, pair.beside_s, strictest_s) if pair.beside_s else inf
            pair.tpot_slack = min(of_tokens, of_rows, of_beside)
            if pair.beside_s:
                before_s = beside.slowed(beside.step_s(0.0, pair.after_s) - beside.row_s, now)
                cost += harm(beside.promised_rows, _slack(self.tpot, before_s, strictest_s), of_beside)
            elif not pair.moves:
                without = _slack(self.tpot, pair.tpot_s, strictest_s)
                cost += harm(node.promised_rows, without, of_rows)
                of_rows = without
            pair.slack = min(pair.slack, of_tokens, of_rows)
        pair.score = min(pair.slack, ENOUGH_SLACK) - cost
        if demand.avoid and (pair.prefill.node in demand.avoid or node.node in demand.avoid):
            pair.score -= AVOIDED

    def best(self, demand: Demand, now: float) -> Pair | None:
        """The pair with the best score among the first few of each order (`scheduler.search`); None without room."""
        return best_pair(self._view, demand, now, self.ttft.safety, self.tpot.safety, self._config)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, expected: Expected, timing: Timing, num_tokens: int, now: float) -> None:
        """A request that was tried once has ended: hold what was predicted against what it got.

        Errors of before nodes were told other mixes say nothing of now, unless they were smaller than what one begins
        with; nor does what was predicted then.
        """
        if self._era != self._view.era:
            self._era = self._view.era
            self.ttft.reset()
            self.tpot.reset()
        if expected.era != self._era:
            return
        slo = expected.slo or RELAXED
        actual = timing.admit_s + timing.queue_prefill_s + timing.prefill_s
        self.ttft.learn(expected.ttft_s, actual, slo.ttft_s if expected.slo else 0.1, now)
        if num_tokens > 1:
            after_s = timing.reserve_s + timing.handoff_s + timing.queue_decode_s + timing.decode_s
            predicted = max(expected.tpot_s, self._filled_s(expected, now))
            self.tpot.learn(predicted, after_s / (num_tokens - 1), slo.tpot_s if expected.slo else 0.01, now)
        if expected.handoff_s > 0.0 and (decode := self._view.nodes.get(expected.decode)) is not None:
            _learn_link(decode, timing.handoff_s / expected.handoff_s, waited=expected.waits_for_link)

    def _filled_s(self, expected: Expected, now: float) -> float:
        """What a token takes there now, up to where nobody more is let in: so far it is no error that others came."""
        view = self._view.nodes.get(expected.decode)
        if view is None:
            return 0.0
        return min(expected.most_tpot_s, view.slowed(view.decode_s, now))

    def expect(self, demand: Demand, pair: Pair, ttft_s: float) -> Expected:
        """What to remember of a pair that is taken. `ttft_s` was predicted, from the request's arrival on."""
        slo = demand.request.slo
        most_s = slo.tpot_s / (1.0 + max(0.0, self.tpot.safety)) if slo is not None else inf
        nodes = pair.prefill.node, pair.decode.node
        alone_s = self._alone_s(pair) if pair.moves else 0.0
        waits = pair.handoff_s > 1.01 * alone_s * pair.decode.handoff_factor
        era = self._view.era
        return Expected(slo, ttft_s, pair.tpot_s, alone_s, *nodes, pair.hit_tokens, most_s, waits, era)

    def forget(self, now: float) -> None:
        """Errors that are too old count no more."""
        self.ttft.forget(now)
        self.tpot.forget(now)


def _learn_link(node: NodeView, ratio: float, *, waited: bool) -> None:
    """A handoff took so many times what was configured: where it had to wait, its link is at least as fast as that."""
    error = ratio - node.handoff_factor
    if waited and error > 0.0:
        return
    node.num_handoffs += 1
    weight = max(HANDOFF_SLOWER if error > 0.0 else HANDOFF_FASTER, 1.0 / node.num_handoffs)
    node.handoff_factor = min(HANDOFF_BOUNDS[1], max(HANDOFF_BOUNDS[0], node.handoff_factor + weight * error))


def _slack(margin: Margin, predicted: float, target: float) -> float:
    """What is left of a target at the safety quantile, as a share of it."""
    return 1.0 - margin.bound(predicted, target) / target if target < inf else inf
