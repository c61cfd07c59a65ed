"""The best pair among the first few nodes of each order.

The sums here are those of `Predictor.pair`, written out: that one is to be read, this one is asked for each request.
With calls in place of lines a search over 64 nodes took 49 to 64 µs on one core of a shared machine, so it takes 16.
"""

from math import exp, inf
from operator import itemgetter
from typing import TYPE_CHECKING

from core.ids import LayoutId
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand
from scheduler.node_view import MOST_LOAD, NodeView
from scheduler.pair import AVOIDED, COST_WEIGHT, ENOUGH_SLACK, RELAXED, Pair, harm
from scheduler.ranking import Entry

if TYPE_CHECKING:
    from scheduler.view import ClusterView

NUM_FIRST = 3
"""Prefill nodes that are looked at: those whose queues end first."""

NUM_ROWS = 2
"""Decode nodes that are looked at: those whose next steps are shortest."""

MAX_HOLDERS = 6
"""Nodes that hold most of the prompt whose queues are compared, where the node whose queue ends first is none of them;
the two that end first are looked at as well."""

Half = tuple[float, NodeView, int, float, float, float]
"""A prefill node's part: when the first token would come, the node, tokens to compute, their pairs, the best score that
it can have with any decode node, and what its work and its waiting cost, as a share of the target."""


_FIRST_S = itemgetter(0)


class _Search:
    """One search. `after_s`: when the first token would come at best, from now on. The rows of that moment are what
    decode nodes are compared by, or a node would be the better for being late."""

    __slots__ = (
        "after_s",
        "config",
        "context",
        "demand",
        "found",
        "now",
        "room",
        "safety",
        "score",
        "target",
        "tpot",
        "tpot_safety",
    )

    def __init__(self, demand: Demand, now: float, safety: float, tpot_safety: float, config: SchedulerConfig) -> None:
        slo = demand.request.slo or RELAXED
        self.demand, self.now, self.config = demand, now, config
        self.target, self.tpot = slo.ttft_s, slo.tpot_s
        self.safety, self.tpot_safety = safety, tpot_safety
        self.context = demand.prefill_tokens + demand.output_tokens / 2
        self.room = max(demand.prefill_blocks, demand.decode_blocks)
        self.after_s = inf
        self.score = -inf
        self.found: tuple[Half, NodeView, float, float, float, float, float, float] | None = None

    def halves(self, nodes: list[NodeView], view: "ClusterView", depth: int, mask: int) -> list[Half]:
        """The prefill part of each node."""
        demand, now, found = self.demand, self.now, []
        total, prompt, keys, waited_s = demand.prefill_tokens, demand.prompt, demand.prefixes, demand.waited_s
        safety, target = self.safety, self.target
        for node in nodes:
            hit = 0
            if prompt and prompt in node.prompts:
                hit = total - 1
            elif depth:
                deep = depth if node.bit & mask else view.prefixes.depth(keys, node.bit, depth)
                hit = min(deep * demand.stride_tokens, total - 1)
            num = total - hit
            pairs = num * (hit + num / 2)
            wait_s = node.free_at - now
            least_s = node.decode_s / 2 if node.booked_rows else 0.0
            if wait_s < least_s:
                wait_s = least_s
            own_s = node.prefill_s(num, pairs)
            first_s, least_s = waited_s + wait_s + own_s, target / 2
            bound = 1.0 - (first_s + safety * (first_s if first_s > least_s else least_s)) / target
            cost = (first_s + own_s) / target
            bound = (bound if bound < ENOUGH_SLACK else ENOUGH_SLACK) - COST_WEIGHT * cost
            found.append((first_s, node, num, pairs, bound, cost))
        return found

    def rows(self, nodes: list[NodeView]) -> NodeView | None:
        """Of these decode nodes the one that is fastest with the row, among those that it would harm least."""
        best, best_slack, tpot = None, -inf, self.tpot
        for node in nodes:
            step_s = self.step_s(node)
            slack = 1.0 - step_s / (tpot if tpot < node.strictest_s else node.strictest_s)
            if slack > best_slack:
                best, best_slack = node, slack
        return best

    def moved(self, half: Half, node: NodeView) -> None:
        """Judge a pair that hands over."""
        first_s, prefill, num, pairs, bound, _ = half
        if bound < self.score and not self.demand.avoid:
            return
        demand, config = self.demand, self.config
        tail = num if num < prefill.budget_tokens else prefill.budget_tokens
        token_s = node.kv_bytes / config.handoff_bytes_per_s * node.handoff_factor
        free_at = prefill.sends_at if prefill.sends_at > node.brings_at else node.brings_at
        moved_s = free_at - self.now - first_s + demand.waited_s + demand.prefill_tokens * token_s
        least_s = tail * token_s
        handoff_s = config.handoff_latency_s * node.handoff_factor + (moved_s if moved_s > least_s else least_s)
        there_s = own_s = self.step_s(node)
        if node.num_handoffs:
            own_s += handoff_s / max(1.0, demand.output_tokens - 1.0)
        beside_s = before_s = 0.0
        if prefill.booked_rows:
            stay = prefill.answer_s / (prefill.answer_s + self.after_s)
            step_s = prefill.decode_fixed_s + prefill.rows_s * stay
            added_s = prefill.recent_s and prefill.recent_s * exp((prefill.recent_at - self.now) / prefill.window_s)
            before, load = added_s / prefill.window_s, (added_s + prefill.delay_s(num, pairs)) / prefill.window_s
            beside_s = step_s / (1.0 - (load if load < MOST_LOAD else MOST_LOAD))
            before_s = step_s / (1.0 - (before if before < MOST_LOAD else MOST_LOAD))
        self.judge(half, node, own_s, there_s, handoff_s, before_s, beside_s)

    def stays(self, half: Half) -> None:
        """Judge a node with itself: the rows there have to bear the prompt."""
        _, node, num, pairs, bound, _ = half
        if bound < self.score and not self.demand.avoid:
            return
        stay = node.answer_s / (node.answer_s + self.after_s)
        step_s = node.decode_fixed_s + node.rows_s * stay + node.row_s + self.context * node.context_s
        added_s = node.recent_s and node.recent_s * exp((node.recent_at - self.now) / node.window_s)
        load = added_s / node.window_s
        own_s = there_s = step_s / (1.0 - (load if load < MOST_LOAD else MOST_LOAD))
        before_s = 0.0
        if node.booked_rows:
            before_s = own_s
            load = (added_s + node.delay_s(num, pairs)) / node.window_s
            there_s = step_s / (1.0 - (load if load < MOST_LOAD else MOST_LOAD))
        self.judge(half, node, own_s, there_s, 0.0, before_s)

    def step_s(self, node: NodeView) -> float:
        """A row's time for a token there, with prompts beside it as lately."""
        stay = node.answer_s / (node.answer_s + self.after_s)
        step_s = node.decode_fixed_s + node.rows_s * stay + node.row_s + self.context * node.context_s
        if node.recent_s:
            load = node.recent_s * exp((node.recent_at - self.now) / node.window_s) / node.window_s
            return step_s / (1.0 - (load if load < MOST_LOAD else MOST_LOAD))
        return step_s

    def judge(
        self,
        half: Half,
        node: NodeView,
        own_s: float,
        there_s: float,
        handoff_s: float,
        before_s: float,
        beside_s: float = 0.0,
    ) -> None:
        """Keep it where it is better than what was found before; of equals the later one.

        Rows of the prefill node took `before_s` each token until now, and take `beside_s` then, or `there_s` where it
        is the decode node as well.
        """
        tpot, safety = self.tpot, self.tpot_safety
        own = 1.0 - (half[0] + self.safety * max(half[0], self.target / 2)) / self.target
        of_tokens, cost = inf, COST_WEIGHT * half[5]
        if own_s:
            least = tpot / 2
            of_tokens = 1.0 - (own_s + safety * (own_s if own_s > least else least)) / tpot
            if of_tokens < own:
                own = of_tokens
            strictest = node.strictest_s
            if strictest < inf:
                least = strictest / 2
                of_rows = after = 1.0 - (there_s + safety * (there_s if there_s > least else least)) / strictest
                if before_s and not beside_s:
                    of_rows = 1.0 - (before_s + safety * (before_s if before_s > least else least)) / strictest
                    cost += harm(node.promised_rows, of_rows, after)
                if of_rows < own:
                    own = of_rows
                if after < of_tokens:
                    of_tokens = after
            strictest = half[1].strictest_s
            if beside_s and strictest < inf:
                least = strictest / 2
                before = 1.0 - (before_s + safety * (before_s if before_s > least else least)) / strictest
                after = 1.0 - (beside_s + safety * (beside_s if beside_s > least else least)) / strictest
                cost += harm(half[1].promised_rows, before, after)
                if after < of_tokens:
                    of_tokens = after
        score = (own if own < ENOUGH_SLACK else ENOUGH_SLACK) - cost
        avoid = self.demand.avoid
        if avoid and (half[1].node in avoid or node.node in avoid):
            score -= AVOIDED
        if score >= self.score:
            self.score, self.found = score, (half, node, own_s, there_s, handoff_s, own, of_tokens, beside_s)

    def pair(self) -> Pair | None:
        """The best that was found."""
        if self.found is None:
            return None
        half, node, own_s, there_s, handoff_s, slack, of_tokens, beside_s = self.found
        first_s, prefill, num, pairs, _, _ = half
        wait_s = prefill.wait_s(self.now)
        own = first_s - self.demand.waited_s - wait_s
        hit = self.demand.prefill_tokens - num
        judged = own_s, there_s, beside_s, slack, of_tokens, self.score, self.after_s
        return Pair(prefill, node, hit, num, pairs, wait_s, own, handoff_s, *judged)


def best_pair(
    view: "ClusterView", demand: Demand, now: float, safety: float, tpot_safety: float, config: SchedulerConfig
) -> Pair | None:
    """The pair with the best score; None where none has room. Who failed before is tried where there is nobody else:
    all nodes are looked at then."""
    view.refresh()
    depth, mask = view.prefixes.deepest(demand.prefixes)
    search = _Search(demand, now, safety, tpot_safety, config)
    num_first, num_rows = (len(view.nodes),) * 2 if demand.avoid else (NUM_FIRST, NUM_ROWS)
    for (layout, _), ranking in view.prefills.items():
        nodes = _first(ranking.entries, demand.prefill_blocks, num_first)
        if mask and not (nodes and nodes[0].bit & mask):
            nodes += _holders(view, demand, layout, mask, nodes)
        if not nodes:
            continue
        halves = search.halves(nodes, view, depth, mask)
        halves.sort(key=_FIRST_S)
        search.after_s = min(search.after_s, halves[0][0] - demand.waited_s)
        if not demand.decodes:
            for half in halves:
                search.judge(half, half[1], 0.0, 0.0, 0.0, 0.0)
            continue
        order = view.decodes.get(layout)
        decodes = _first(order.entries, demand.decode_blocks, num_rows) if order is not None else []
        _move(search, halves, decodes)
        extra = [node for node in decodes if node.prefills and node not in nodes]
        if extra:
            halves += search.halves(extra, view, depth, mask)
        for half in halves:
            if half[1].decodes and half[1].unbooked >= search.room:
                search.stays(half)
    return search.pair()


def _move(search: _Search, halves: list[Half], decodes: list[NodeView]) -> None:
    """The prefill node that is done first with the best other decode node; and where rows there would have to bear the
    prompt, the first one without rows with the best.

    Where nodes are to be avoided, each with each.
    """
    if search.demand.avoid:
        for half in halves:
            for node in decodes:
                if node is not half[1]:
                    search.moved(half, node)
        return
    best = search.rows(decodes)
    if best is None:
        return
    first = halves[0]
    second = search.rows([node for node in decodes if node is not best]) if first[1] is best else best
    if second is not None:
        search.moved(first, second)
    if first[1].booked_rows:
        for half in halves:
            if not half[1].booked_rows and half[1] is not best:
                search.moved(half, best)
                return


def _first(entries: list[Entry], num_blocks: int, num: int) -> list[NodeView]:
    """The first few that have so many blocks."""
    found = []
    for _, _, node in entries:
        if node.unbooked >= num_blocks:
            found.append(node)
            if len(found) == num:
                break
    return found


def _holders(view: "ClusterView", demand: Demand, layout: LayoutId, mask: int, known: list[NodeView]) -> list[NodeView]:
    """Of the nodes that hold most of the prompt, and are not known yet, the two whose queues end first."""
    holders = []
    for _ in range(MAX_HOLDERS):
        bit = mask & -mask
        mask ^= bit
        node = view.by_bit[bit]
        if node.prefills and node.unbooked >= demand.prefill_blocks and node.spec.layout == layout:
            holders.append((node.free_at, node.node, node))
        if not mask:
            break
    holders.sort()
    return [node for _, _, node in holders if node not in known][:2]
