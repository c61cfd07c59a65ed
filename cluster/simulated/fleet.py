"""A fleet under a workload in virtual time: live scheduler, nodes and streams; simulated steps, links and faults."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.simulated.fleet_host import FleetHost
from cluster.simulated.fleet_world import Circumstances, FleetWorld, Load, MixChange
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth import StepTruth
from cluster.workload.items import Workload
from cluster.workload.served import ServedRequest
from core.decisions import Decided, Decision
from core.errors import ConfigError
from core.ids import node_name
from core.kv import KVLayout
from core.mix import Mix
from core.request import SLO
from core.whatif import WhatIfAnswered, WhatIfAsked
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller
from scheduler.policies.build import POLICY_NAMES, policy_of
from scheduler.scheduler import Scheduler

FAULT_KINDS = ("lost", "join", "drain")
ROLES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class FleetNode:
    """One node. `beside`: how long steps take that begin while another node runs one, where nodes share a machine's
    memory and caches; None: as long as alone. `num_gpus` and `cost_per_hour` are for the account only."""

    name: str
    role: str
    truth: StepTruth
    num_blocks: int
    prefill_tokens_per_step: int
    max_decode_rows: int
    num_gpus: int = 1
    cost_per_hour: float = 0.0
    beside: StepTruth | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes, of one model. `may_repeat`: decode steps between which nothing happens are simulated together, which
    changes nothing but when their tokens are seen under way: at the next tick of their node at the latest."""

    nodes: tuple[FleetNode, ...]
    kv: KVLayout
    max_model_len: int
    links: FleetLinks
    scheduler: SchedulerConfig
    policy: str = "goodput"
    may_repeat: bool = True


@dataclass(frozen=True, slots=True)
class FleetFault:
    """What befalls a node. `lost`: its process ends, the others hear of it `heard_after_s` later, and where
    `back_after_s` is told it comes back empty. `join`: it comes; a node whose first fault this is was not there before.
    `drain`: the operator wants it empty."""

    at_s: float
    node: str
    kind: str
    back_after_s: float | None = None
    heard_after_s: float = 0.1


@dataclass(frozen=True, slots=True)
class FleetOverride:
    """The operator sets mixes of nodes, by name. None set: all nodes are given back to the controller."""

    at_s: float
    mixes: tuple[tuple[str, Mix], ...] = ()


@dataclass(frozen=True, slots=True)
class FleetPlanner:
    """Answers what-if questions, each `delay_s` after it was asked."""

    answer: Callable[[WhatIfAsked], WhatIfAnswered]
    delay_s: float = 0.5


@dataclass(frozen=True, slots=True)
class FleetSupply:
    """Carries out capacity targets. The nodes named in `absent` are not there at the start and may be started; a node
    is ready `start_s` after that is asked, unless fewer are wanted before. One that should go is drained, then
    stopped."""

    absent: tuple[str, ...]
    start_s: float = 30.0


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What one node did, over all its lives. Busy seconds by kind of step: with prompts in it, or with rows only.

    The average fleet is the sum of `alive_s` and `starting_s` over a run's duration: who starts occupies a place."""

    name: str
    alive_s: float
    starting_s: float
    prefill_busy_s: float
    decode_busy_s: float
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_cached_tokens: int
    num_gpus: int
    cost_per_hour: float


@dataclass(frozen=True, slots=True)
class FleetRun:
    """What came out. `duration_s` is from the workload's start to the last end of a request.

    `num_reversals` counts mix changes that took a node's role back to what it was before its last change. `num_lost`
    are requests that never ended. `peak_handoffs`: the most attempts that were lent by one node to another at a time;
    `peak_flows`: the most copies under way. `errors`: how many requests ended with which code. `sizes`: how many nodes
    lived, from when on.
    """

    records: tuple[ServedRequest, ...]
    duration_s: float
    nodes: tuple[NodeUse, ...]
    mix_changes: tuple[MixChange, ...]
    num_reversals: int
    num_lost: int
    num_extrapolated: int
    peak_handoffs: int
    peak_flows: int
    errors: tuple[tuple[str, int], ...]
    decisions: tuple[Decision, ...]
    sizes: tuple[tuple[float, int], ...]


def run_fleet(
    fleet: Fleet,
    workload: Workload,
    slo: SLO,
    *,
    seed: int = 0,
    faults: Sequence[FleetFault] = (),
    overrides: Sequence[FleetOverride] = (),
    deadline_s: float = 600.0,
    controller: Controller | None = None,
    planner: FleetPlanner | None = None,
    supply: FleetSupply | None = None,
) -> FleetRun:
    """Serve the workload. Same arguments and seed, same run. Raises ConfigError for a fleet that cannot be.

    A `controller` is the scheduler's from then on: one for each run.
    """
    _check(fleet, faults, overrides, supply)
    truths = {id(each): each for node in fleet.nodes for each in (node.truth, node.beside) if each}.values()
    before = sum(truth.num_extrapolated for truth in truths)
    scheduler = Scheduler(fleet.scheduler, policy_of(fleet.policy, fleet.scheduler), controller)
    circumstances = Circumstances(tuple(faults), tuple(overrides), planner, supply)
    world = FleetWorld(fleet, scheduler, Load(workload, slo, deadline_s), circumstances, seed)
    world.run()
    uses = tuple(_use_of(node, world) for node in fleet.nodes)
    world.settle()
    clients = world.door.clients.values()
    return FleetRun(
        tuple(client.served() for client in clients if client.outcome is not None),
        world.door.last_end_at,
        uses,
        tuple(world.mix_changes),
        num_reversals(fleet, world.mix_changes),
        sum(client.outcome is None for client in clients),
        sum(truth.num_extrapolated for truth in truths) - before,
        world.place.peak_handoffs,
        world.links.peak_flows,
        tuple(sorted(Counter(client.code for client in clients if client.code).items())),
        tuple(event.decision for event in world.for_operator if isinstance(event, Decided)),
        tuple(world.sizes),
    )


def num_reversals(fleet: Fleet, changes: Sequence[MixChange]) -> int:
    """Changes of a node's role back to the one before its last change."""
    found, roles = 0, {node.name: ["", node.role] for node in fleet.nodes}
    for change in changes:
        before, now = roles[change.node]
        if change.role != now:
            found += change.role == before
            roles[change.node] = [now, change.role]
    return found


def _use_of(node: FleetNode, world: FleetWorld) -> NodeUse:
    hosts: list[FleetHost] = [host for name, host in world.hosts.items() if node_name(name) == node.name]
    now = world.loop.now
    return NodeUse(
        node.name,
        sum((now if host.use.ended_at is None else host.use.ended_at) - host.use.began_at for host in hosts),
        world.starting_s.get(node.name, 0.0),
        sum(host.use.prefill_busy_s for host in hosts),
        sum(host.use.decode_busy_s for host in hosts),
        sum(host.use.num_steps for host in hosts),
        sum(host.use.num_prefill_tokens for host in hosts),
        sum(host.use.num_decode_tokens for host in hosts),
        sum(host.machine.prefill.num_cached_tokens for host in hosts),
        node.num_gpus,
        node.cost_per_hour,
    )


def _check(
    fleet: Fleet, faults: Sequence[FleetFault], overrides: Sequence[FleetOverride], supply: FleetSupply | None
) -> None:
    names = [node.name for node in fleet.nodes]
    problems = [] if fleet.policy in POLICY_NAMES else [f"policy {fleet.policy!r} is none of {', '.join(POLICY_NAMES)}"]
    problems += [f"two nodes are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    for node in fleet.nodes:
        problems += [f"node {node.name}: {what}" for what in _problems(node)]
    absent = supply.absent if supply else ()
    roles = {node.role for node in fleet.nodes if node.name not in absent}
    problems += [f"no node {phase}s" for phase in ("prefill", "decode") if not roles & {phase, "mixed"}]
    named = [(fault.node, "a fault") for fault in faults] + [(name, "the supply") for name in absent]
    named += [(name, "an override") for override in overrides for name, _ in override.mixes]
    problems += [
        f"{what} names the node {name}, which is not in the fleet" for name, what in named if name not in names
    ]
    kinds = [fault.kind for fault in faults if fault.kind not in FAULT_KINDS]
    problems += [f"{kind!r} is no fault; there are {', '.join(FAULT_KINDS)}" for kind in kinds]
    if fleet.links.bytes_per_s <= 0 or fleet.links.latency_s < 0 or fleet.links.message_s < 0:
        problems.append(f"{fleet.links} carry nothing")
    if problems:
        raise ConfigError(problems)


def _problems(node: FleetNode) -> list[str]:
    problems = [] if node.role in ROLES else [f"{node.role!r} is no role; there are {', '.join(ROLES)}"]
    if node.num_blocks < 1:
        problems.append(f"a pool of {node.num_blocks} blocks")
    if node.role != "decode" and node.prefill_tokens_per_step < 1:
        problems.append(f"prefills {node.prefill_tokens_per_step} tokens per step")
    if node.role != "prefill" and node.max_decode_rows < 1:
        problems.append(f"decodes {node.max_decode_rows} rows")
    if "@" in node.name or not node.name:
        problems.append(f"{node.name!r} is no name of a node")
    return problems
