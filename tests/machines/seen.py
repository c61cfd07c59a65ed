"""A cluster as a scheduler sees it, made by hand: nodes of known prices, and what is booked at them."""

from math import inf

from core.costs import NodeCosts, StepWork
from core.ids import AttemptId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import SLO, Prompt, Request, SamplingParams
from core.stats import BlockCounts, NodeStats
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand
from scheduler.prefix_index import stride_of, strided
from scheduler.view import Booking, ClusterView, NodeView

KV = KVLayout(1, 1, 1, 16, "float32")
COSTS = NodeCosts(
    prefill_fixed_s=0.010,
    decode_fixed_s=0.008,
    per_prefill_token_s=1e-4,
    per_prefill_pair_s=1e-7,
    per_row_s=2e-4,
    per_row_context_s=1e-6,
)
CONFIG = SchedulerConfig(handoff_bytes_per_s=1e6, handoff_latency_s=0.001)
KEYS = tuple(bytes([i]) * 4 for i in range(200))


def spec_of(
    role: str, *, budget: int = 512, rows: int = 64, blocks: int = 4000, costs: NodeCosts | None = COSTS
) -> NodeSpec:
    """A node."""
    return NodeSpec(LayoutId("l"), KV, blocks, 65_536, mix_of(role, budget, rows), costs)


def view_of(*roles: str, config: SchedulerConfig = CONFIG, budget: int = 512) -> ClusterView:
    """Nodes `n0`, `n1`, … of these roles."""
    view = ClusterView(config)
    for i, role in enumerate(roles):
        view.join(NodeId(f"n{i}"), spec_of(role, budget=budget))
    return view


def node(view: ClusterView, number: int) -> NodeView:
    """One of them."""
    return view.nodes[NodeId(f"n{number}")]


def request_of(
    num_tokens: int,
    *,
    name: str = "r",
    slo: SLO | None = SLO(1.0, 0.05),  # noqa: B008 - frozen
    keys: tuple[bytes, ...] = (),
    priority: int = 0,
    tenant: str = "",
    max_tokens: int = 100,
    deadline_s: float = 600.0,
) -> Request:
    """A request."""
    prompt = Prompt(num_tokens, keys, keys[-1] if keys else b"")
    return Request(RequestId(name), prompt, b"", SamplingParams(max_tokens), slo, priority, tenant, deadline_s)


def demand_of(
    request: Request, *, output: float = 100.0, waited_s: float = 0.0, avoid: frozenset[NodeId] = frozenset()
) -> Demand:
    """What it needs."""
    num = request.prompt.num_tokens
    blocks = -(-num // 16), -(-(num + int(output)) // 16)
    prefixes = strided(request.prompt.block_keys, 16)
    return Demand(
        request, num, *blocks, True, avoid, request.prompt.tail_key, prefixes, stride_of(16) * 16, waited_s, output
    )


def put_rows(
    view: ClusterView, number: int, num_rows: int, *, context: int = 1000, tpot_s: float = inf, now: float = 0.0
) -> None:
    """Rows that decode at a node."""
    for _ in range(num_rows):
        attempt = AttemptId(f"row-{len(node(view, number).bookings)}@{number}#0")
        view.book(attempt, NodeId(f"n{number}"), Booking(4, 0, 1, context=context, tpot_s=tpot_s), now)


def put_prompt(view: ClusterView, number: int, num_tokens: int, *, now: float = 0.0) -> None:
    """A prompt that waits at a node."""
    attempt = AttemptId(f"prompt-{len(node(view, number).bookings)}@{number}#0")
    booking = Booking(4, num_tokens, 0, pairs=num_tokens * num_tokens / 2)
    view.book(attempt, NodeId(f"n{number}"), booking, now)


def report(work: StepWork, busy_s: float, queued_tokens: int = 0, running_rows: int = 0) -> NodeStats:
    """What a node says of itself."""
    blocks = BlockCounts(1, 1, 0, 0, 0, 0, 0, 0, 0)
    return NodeStats(queued_tokens, 0, 0, 0, running_rows, blocks, 0, 0, 0.0, 0, work=work, busy_s=busy_s)


def prove(view: ClusterView, *, factor: float = 1.0, now: float = 0.0, queued_tokens: int = 0) -> None:
    """Every node reports steps that took `factor` times what they should."""
    work = StepWork(2, 10, 1000, 1000 * 250.0, 100, 100_000)
    for name in view.nodes:
        view.believe(name, report(work, factor * COSTS.seconds(work), queued_tokens), now)
