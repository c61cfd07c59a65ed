"""How fast the scheduler decides: routes on a warm view of 64 nodes with hashed prompts, and refusals at the door."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cluster.console import OUT
from cluster.report_file import Figure, write_report
from core.costs import NodeCosts, StepWork
from core.events import NodeJoined, RequestArrived, StatsReported, Submitted
from core.ids import GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import SLO, Prompt, Request, SamplingParams
from core.stats import BlockCounts, NodeStats
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand
from scheduler.policies.build import policy_of
from scheduler.policies.policy import Policy
from scheduler.prefix_index import stride_of, strided
from scheduler.scheduler import Scheduler

NUM_NODES, NUM_BLOCKS, BLOCK_SIZE = 64, 20_000, 16
NUM_STEMS, STEM_BLOCKS = 200, 400
"""Prefixes that prompts share, and their lengths; enough others fill the index to more than a million blocks."""

KV = KVLayout(32, 8, 128, BLOCK_SIZE, "bfloat16")
COSTS = NodeCosts(0.012, 0.010, 4e-5, 1e-9, 4e-5, 2e-8)
"""About a model of 8 B on one large GPU; what they are makes no difference to how long a decision takes."""

TARGETS = SLO(2.0, 0.05)
LAYOUTS = {
    "disaggregated": ("prefill", "decode"),
    "aggregated": ("mixed",),
    "all_roles": ("prefill", "mixed", "decode"),
}


@dataclass(frozen=True, slots=True)
class Warm:
    """A scheduler with requests in flight, and requests that it has not seen."""

    scheduler: Scheduler
    policy: Policy
    fresh: tuple[Request, ...]
    now: float


def run_bench_route(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    figures: dict[str, Figure] = {}
    samples: list[dict[str, object]] = []
    for layout in LAYOUTS:
        warm = warmed(args.policy, LAYOUTS[layout], args.routes)
        if layout == "disaggregated":
            figures["scheduler.index_blocks"] = num_indexed_blocks(warm)
        timed = sorted((times_of(warm) for _ in range(args.repeats)), key=sum)
        middle = sorted(timed[len(timed) // 2])
        suffix = "" if layout == "disaggregated" else f".{layout}"
        figures[f"scheduler.routes_per_s{suffix}"] = round(len(middle) / sum(middle), 1)
        figures[f"scheduler.route_us_p99{suffix}"] = round(middle[int(0.99 * len(middle))] * 1e6, 2)
        samples += [{"layout": layout, "routes": len(each), "seconds": sum(each)} for each in timed]
    figures["scheduler.refusals_per_s"] = round(refusals_per_s(args.policy), 1)
    for name, value in figures.items():
        OUT.print(f"{name}: {value:,}")
    if args.json:
        write_report(args.json, "bench route", figures, samples)
    return 0


def warmed(policy_name: str, roles: tuple[str, ...], num_fresh: int) -> Warm:
    """Nodes of these roles in turn, 600 requests in flight, an index of a million blocks."""
    config = SchedulerConfig(max_ahead_s=1e9)
    policy = policy_of(policy_name, config)
    scheduler, chance = Scheduler(config, policy), Random(0)
    for i in range(NUM_NODES):
        mix = mix_of(roles[i * len(roles) // NUM_NODES], 2048, 256)
        spec = NodeSpec(LayoutId("bench"), KV, NUM_BLOCKS, 131_072, mix, COSTS)
        scheduler.handle(NodeJoined(NodeId(f"node-{i:02d}@0"), spec), 0.0)
    prefixes = scheduler.view.prefixes
    for node in scheduler.view.nodes:
        prefixes.add(node, [chance.randbytes(16) for _ in range(NUM_BLOCKS // stride_of(BLOCK_SIZE) - 400)])
    requests = _requests(chance)
    now = 0.0
    for _ in range(600):
        now += 0.002
        scheduler.handle(RequestArrived(next(requests), GatewayId("g")), now)
    return Warm(scheduler, policy, tuple(next(requests) for _ in range(num_fresh)), now)


def times_of(warm: Warm) -> list[float]:
    """Seconds of a route for each fresh request; nothing is booked, so that all see the same view."""
    view, policy, now, clock = warm.scheduler.view, warm.policy, warm.now, time.perf_counter
    demands = [demand_of(request) for request in warm.fresh]
    times = []
    for demand in demands:
        began = clock()
        policy.route(demand, view, now)
        times.append(clock() - began)
    return times


def demand_of(request: Request) -> Demand:
    """What such a request needs, with an answer of 256 tokens."""
    num = request.prompt.num_tokens
    return Demand(
        request,
        num,
        -(-num // BLOCK_SIZE),
        -(-(num + 256) // BLOCK_SIZE),
        prompt=request.prompt.tail_key,
        prefixes=strided(request.prompt.block_keys, BLOCK_SIZE),
        stride_tokens=stride_of(BLOCK_SIZE) * BLOCK_SIZE,
    )


def num_indexed_blocks(warm: Warm) -> int:
    """Blocks of KV that the index speaks of."""
    return len(warm.scheduler.view.prefixes) * stride_of(BLOCK_SIZE)


def refusals_per_s(policy_name: str) -> float:
    """Arrivals at a full cluster, each turned away by what is predicted for it."""
    config = SchedulerConfig()
    scheduler = Scheduler(config, policy_of(policy_name, config))
    for i in range(NUM_NODES):
        node, mix = NodeId(f"node-{i:02d}@0"), mix_of("mixed", 2048, 256)
        scheduler.handle(NodeJoined(node, NodeSpec(LayoutId("bench"), KV, NUM_BLOCKS, 131_072, mix, COSTS)), 0.0)
        scheduler.handle(StatsReported(node, _seen()), 0.0)
    making = _requests(Random(1))
    while scheduler_takes(scheduler, next(making)):
        pass
    later = [next(making) for _ in range(500)]
    began = time.perf_counter()
    refused = sum(not scheduler_takes(scheduler, request) for request in later)
    return refused / (time.perf_counter() - began)


def scheduler_takes(scheduler: Scheduler, request: Request) -> bool:
    """Whether a request that comes now is submitted to a node, or waits."""
    commands = scheduler.handle(RequestArrived(request, GatewayId("g")), 1.0)
    told = [getattr(command, "event", None) for command in commands]
    return any(isinstance(event, Submitted) for event in told) or not told


def _seen() -> NodeStats:
    """A report of steps that took what they should."""
    work = StepWork(1, 1, 512, 131_072.0, 1, 512)
    blocks = BlockCounts(NUM_BLOCKS, NUM_BLOCKS, 0, 0, 0, 0, 0, 0, 0)
    return NodeStats(0, 0, 0, 0, 0, blocks, 0, 2, 0.0, 0, work=work, busy_s=COSTS.seconds(work))


def _requests(chance: Random) -> Iterator[Request]:
    """Prompts of 500 to 8,000 tokens, each with a part of a stem before its own blocks."""
    stems = [[chance.randbytes(16) for _ in range(STEM_BLOCKS)] for _ in range(NUM_STEMS)]
    number = 0
    while True:
        number += 1
        num = chance.randint(500, 8000)
        shared = chance.choice(stems)[: chance.randint(0, num // BLOCK_SIZE)]
        keys = (*shared, *(chance.randbytes(16) for _ in range(num // BLOCK_SIZE - len(shared))))
        prompt = Prompt(num, keys, chance.randbytes(16))
        yield Request(RequestId(f"{number:032x}"), prompt, b"", SamplingParams(1024), TARGETS)
