"""Small fleets whose steps cost round numbers, and workloads for them."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

from cluster.simulated.fleet import Fleet, FleetNode
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth import StraightTruth
from cluster.workload.items import WorkItem, Workload
from core.costs import NodeCosts
from core.kv import KVLayout
from core.request import SLO
from scheduler.config import SchedulerConfig

LAX = SLO(1000.0, 1000.0)
COSTS = NodeCosts(0.006, 0.005, 2e-5, 2e-10, 2e-5, 3e-8)
KV = KVLayout(num_layers=32, num_kv_heads=8, head_dim=128, block_size=64, dtype="bfloat16")
AT_ONCE = FleetLinks(bytes_per_s=1e15, latency_s=0.0, message_s=0.0)


def node(name: str, role: str, *, costs: NodeCosts = COSTS, num_blocks: int = 4000, budget: int = 2048) -> FleetNode:
    """One node."""
    return FleetNode(name, role, StraightTruth(costs), num_blocks, budget, 64)


def fleet(*nodes: FleetNode, policy: str = "least_loaded", links: FleetLinks | None = None) -> Fleet:
    """A fleet that refuses nobody for its SLO."""
    config = SchedulerConfig(refuses_unattainable=False, max_queued_requests=100_000)
    return Fleet(nodes, KV, 32_768, links or FleetLinks(2.5e10), config, policy)


def pairs(num_prefill: int, num_decode: int, **kwargs: int) -> tuple[FleetNode, ...]:
    """Nodes of both kinds."""
    prefills = (node(f"p{i}", "prefill", **kwargs) for i in range(num_prefill))  # type: ignore[arg-type]
    return (*prefills, *(node(f"d{i}", "decode", **kwargs) for i in range(num_decode)))  # type: ignore[arg-type]


def poisson(rate_rps: float, number: int, prompt_tokens: int, output_tokens: int, seed: int = 1) -> Workload:
    """Requests of one size."""
    chance, at_s, items = Random(seed), 0.0, []
    for _ in range(number):
        at_s += chance.expovariate(rate_rps)
        items.append(WorkItem(at_s, prompt_tokens, output_tokens))
    return Workload("poisson", tuple(items))


def varied(number: int, rate_rps: float = 8.0, seed: int = 1) -> Workload:
    """Requests of many sizes, some with a common prefix."""
    chance = Random(seed)
    sizes = [(chance.randint(10, 3000), chance.randint(1, 120), chance.random() < 0.5) for _ in range(number)]
    even = poisson(rate_rps, number, 1, 1, seed).items
    items = (
        replace(
            item,
            prompt_tokens=prompt,
            output_tokens=output,
            block_ids=tuple((0 if i == 0 else number * 100 + place * 10 + i) for i in range(-(-prompt // 512)))
            if shares
            else (),
        )
        for place, (item, (prompt, output, shares)) in enumerate(zip(even, sizes, strict=True))
    )
    return Workload("varied", tuple(items))


def at_once(items: Iterable[tuple[int, int]]) -> Workload:
    """(prompt, output) tokens of requests that all come at 0."""
    return Workload("at once", tuple(WorkItem(0.0, prompt, output) for prompt, output in items))
