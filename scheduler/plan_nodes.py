"""The nodes of the view in the words of a plan: what they can do, what they accept, what may be changed."""

from collections.abc import Set

from core.costs import NodeCosts, StepWork
from core.ids import node_name
from scheduler.closed_forms import NodeAbility
from scheduler.config import SchedulerConfig
from scheduler.layouts import PlanNode
from scheduler.view import ClusterView, NodeView

WIDENED_PREFILL_TOKENS = 512
"""Chunk budget of a node that was started without one: vLLM's default chunk on small devices."""

WIDENED_DECODE_ROWS = 64
"""Rows of a node that was started without any."""

UNKNOWN_BYTES_PER_S, OPTIMISM = 1e10, 4.0
"""What links are taken to carry before it is learned: 100 Gbit/s, or so many times what was configured as a guess."""

SAME_COSTS = 0.1
"""Nodes whose steps are believed to differ by less are taken to be equal: what is measured is never exactly so."""

_STEPS = (StepWork(1, 0, 1024, 1024 * 512.0), StepWork(0, 1, 0, 0.0, 32, 32 * 1024))


class LinkMeter:
    """How long a byte takes between nodes, by what the view has learned of handoffs.

    Owns: what was learned when it was last asked, and in `bytes_per_s` what replays should take links to carry. Until
    what is learned has risen for the first time, links are taken to be no limit: the view begins with a guess, and one
    that is far too low must not keep phases together.
    """

    def __init__(self) -> None:
        self._last = 1.0
        self._is_known = False
        self.bytes_per_s = UNKNOWN_BYTES_PER_S

    def byte_s(self, view: ClusterView, config: SchedulerConfig) -> float:
        """Seconds; 0 where links are no limit, for all that is known."""
        factor = min((each.handoff_factor for each in view.nodes.values()), default=1.0)
        self._is_known |= factor > self._last
        self._last = factor
        guessed = max(UNKNOWN_BYTES_PER_S, OPTIMISM * config.handoff_bytes_per_s)
        self.bytes_per_s = config.handoff_bytes_per_s / factor if self._is_known else guessed
        return 1.0 / self.bytes_per_s if self._is_known else 0.0


def plan_nodes(view: ClusterView, pinned: Set[str], byte_s: float) -> list[PlanNode] | None:
    """All nodes, in a fixed order; None while there is a role of which no node has shown what its steps take.

    A node that has run no step yet is taken to be like another one of its role: a decode node to which nothing is
    handed would never show what it can do. A byte takes `byte_s` between nodes. Free are those that neither the
    operator has set (`pinned`, by name) nor a drain has closed.
    """
    views = sorted(view.nodes.values(), key=lambda each: each.node)
    proven = {each.base_mix.role: each.belief.costs for each in reversed(views) if _is_known(each)}
    if not proven or any(each.base_mix.role not in {*proven, "closed"} for each in views):
        return None
    known: list[NodeCosts] = []
    nodes = []
    for each in views:
        costs = each.belief.costs if _is_known(each) else proven.get(each.base_mix.role, next(iter(proven.values())))
        is_free = each.base_mix.role != "closed" and node_name(each.node) not in pinned
        nodes.append(PlanNode(each.node, _ability(each, costs, known, byte_s), each.base_mix, is_free))
    return nodes


def _is_known(view: NodeView) -> bool:
    return view.belief.told is not None or view.belief.is_proven


def _ability(view: NodeView, costs: NodeCosts, known: list[NodeCosts], byte_s: float) -> NodeAbility:
    mix = view.spec.mix
    return NodeAbility(
        _same(costs, known),
        view.spec.num_blocks * view.spec.kv.block_size,
        mix.max_decode_rows or WIDENED_DECODE_ROWS,
        mix.prefill_tokens_per_step or WIDENED_PREFILL_TOKENS,
        link_s=view.spec.kv.bytes_per_token * byte_s,
    )


def _same(costs: NodeCosts, known: list[NodeCosts]) -> NodeCosts:
    """Costs that are known already and hardly differ, or these."""
    for other in known:
        if all(abs(costs.seconds(s) - other.seconds(s)) <= SAME_COSTS * other.seconds(s) for s in _STEPS):
            return other
    known.append(costs)
    return costs
