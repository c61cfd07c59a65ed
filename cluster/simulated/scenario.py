"""What one run is about: nodes, requests, costs, timers, possible faults. Drawn from a seed, or written by hand."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

from cluster.simulated.costs import Costs, LinkCosts, StepCosts
from core.ids import GatewayId, LayoutId, RequestId
from core.kv import KVLayout, block_keys, tail_key
from core.request import SLO, Prompt, Request, SamplingParams, pack_tokens
from core.timers import Timers
from engine.fake_truth import VOCAB_SIZE

EOS_TOKEN_IDS = frozenset({0})


class Fault(StrEnum):
    """The classes of things that go wrong; each is on or off for a whole run."""

    DELAY = "delay"
    REORDER = "reorder"
    CANCEL = "cancel"
    STOP = "stop"
    DEADLINE = "deadline"
    KILL = "kill"
    ZOMBIE = "zombie"
    SEVER = "sever"
    PAUSE = "pause"
    CORRUPT = "corrupt"
    SLOW_FETCH = "slow_fetch"
    STEP_FAILED = "step_failed"
    ROW_FAILED = "row_failed"
    MIX = "mix"
    DRAIN = "drain"
    GATEWAY = "gateway"


HARMFUL = frozenset(Fault) - {Fault.DELAY, Fault.REORDER, Fault.MIX, Fault.STOP, Fault.DRAIN, Fault.GATEWAY}
"""Where none of these is on, each request that fits must be answered whole. A gateway takes only its own with it."""

DRAWN: tuple[Fault, ...] = tuple(fault for fault in Fault if fault not in (Fault.DRAIN, Fault.GATEWAY))
"""What a seed's own dice decide. Whether rows move and whether a gateway goes is drawn beside them, so that others give
the runs they gave."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node and those that replace it: `name` outlives incarnations. Without `copy_s_per_block` it saves no rows."""

    name: str
    role: str
    num_blocks: int
    prefill_tokens_per_step: int = 8
    max_decode_rows: int = 8
    max_steps_in_flight: int = 1
    max_draft_tokens: int = 0
    max_saved_blocks: int = 0
    copy_s_per_block: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client's request, and when it knocks at which gateway. `leaves_after` tokens the client has what it wanted
    and stops; 0: it leaves as soon as it has asked.
    """

    at: float
    gateway: GatewayId
    request: Request
    leaves_after: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. `fault_rate` scales how often faults happen; `fenced_transport`: a revoked lease cannot be read through.

    `overcommit`: the scheduler books for short answers only, so that pools run full and rows are preempted.
    `by_hand`: somebody breaks things from outside. `rebalance_gap`: see `SchedulerConfig`. `policy` routes, by name;
    `predicts`: who is predicted to miss its SLO is refused, and credits go by learned lengths. `gateway_dies_at`: the
    first gateway's end, where GATEWAY is among the faults.
    """

    seed: int
    nodes: tuple[NodePlan, ...]
    arrivals: tuple[Arrival, ...]
    block_size: int = 4
    max_model_len: int = 32
    gateways: tuple[GatewayId, ...] = (GatewayId("gateway-0"),)
    timers: Timers = field(default_factory=lambda: shrunk(0.1))
    costs: Costs = field(default_factory=Costs)
    faults: frozenset[Fault] = frozenset()
    fault_rate: float = 1.0
    fenced_transport: bool = False
    overcommit: bool = False
    by_hand: bool = False
    rebalance_gap: float | None = None
    policy: str = "least_loaded"
    predicts: bool = False
    gateway_dies_at: float = 0.0

    @property
    def may_fail(self) -> bool:
        """Whether a handoff or a step may come to nothing. A row that migrates need not be claimed in time."""
        moves = self.rebalance_gap is not None or Fault.DRAIN in self.faults
        return self.by_hand or moves or bool(self.faults & (HARMFUL | {Fault.DELAY, Fault.REORDER, Fault.GATEWAY}))

    @property
    def kv(self) -> KVLayout:
        """A geometry of 8 bytes a token, which is a slot of the fake memory."""
        return KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, block_size=self.block_size, dtype="float32")

    @property
    def layout(self) -> LayoutId:
        """The layout that all nodes of the run share."""
        return self.kv.id("fake")


def shrunk(scale: float, tick_s: float = 0.08) -> Timers:
    """The usual timers, `scale` times as long; ticks stay rare, because they cost the most to simulate."""
    usual = Timers()
    times = {name: getattr(usual, name) * scale for name in Timers.__slots__ if name != "tick_s"}
    return Timers(tick_s=tick_s, **times)


def make_request(
    name: str,
    token_ids: list[int],
    max_tokens: int,
    *,
    block_size: int = 4,
    seed: int = 0,
    tenant: str = "",
    priority: int = 0,
    deadline_s: float = 60.0,
    tpot_s: float = 0.1,
    ignore_eos: bool = False,
    choice: int = 0,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> Request:
    """A request over given tokens, as a gateway would make it."""
    packed = pack_tokens(token_ids)
    keys, tail = block_keys(packed, block_size, tenant), tail_key(packed, block_size, tenant)
    prompt = Prompt(len(token_ids), keys, tail)
    sampling = SamplingParams(
        max_tokens, seed=seed, ignore_eos=ignore_eos, logprobs=logprobs, prompt_logprobs=prompt_logprobs, choice=choice
    )
    return Request(RequestId(name), prompt, packed, sampling, SLO(2.0, tpot_s), priority, tenant, deadline_s)


def draw(seed: int) -> Scenario:
    """The scenario of a seed: 1 to 8 nodes of any role, pools of 4 to 64 blocks, 20 to 60 requests.

    One in five is tight: small pools, long answers, and host memory near. Every tenth that has two gateways loses one.
    """
    chance, moving, routing = Random(seed), Random(f"rows that move in {seed}"), Random(f"routing of {seed}")
    faults = frozenset(fault for fault in DRAWN if chance.random() < 0.5) if chance.random() < 0.9 else frozenset()
    if moving.random() < 0.4:
        faults |= {Fault.DRAIN}
    block_size = chance.randint(2, 4)
    gateways = tuple(GatewayId(f"gateway-{i}") for i in range(chance.randint(1, 2)))
    if len(gateways) > 1 and seed % 10 == 9:
        faults |= {Fault.GATEWAY}
    is_tight = chance.random() < 0.2
    nodes = _draw_nodes(chance, is_tight)
    lengths = (6, 10, 14) if is_tight else (1, 2, 4, 6, 10, 14)
    arrivals = _draw_arrivals(chance, block_size, gateways, faults, lengths)
    is_goodput = routing.random() < 0.3
    if is_goodput:
        arrivals = tuple(_perhaps_offline(arrival, routing) for arrival in arrivals)
    return Scenario(
        seed,
        nodes,
        arrivals,
        block_size=block_size,
        gateways=gateways,
        timers=shrunk(chance.choice((0.06, 0.1, 0.16))),
        costs=_draw_costs(chance),
        faults=faults,
        fault_rate=chance.choice((0.5, 1.0, 2.0)),
        fenced_transport=chance.random() < 0.5,
        overcommit=is_tight or chance.random() < 0.6,
        rebalance_gap=moving.choice((None, None, None, 0.05, 0.2)),
        policy="goodput" if is_goodput else "least_loaded",
        predicts=is_goodput and bool(faults & HARMFUL),
        gateway_dies_at=Random(f"gateways that leave in {seed}").uniform(0.0, 0.6),
    )


def _perhaps_offline(arrival: Arrival, chance: Random) -> Arrival:
    """One in six asks for what the others leave idle."""
    if chance.random() >= 1 / 6:
        return arrival
    return replace(arrival, request=replace(arrival.request, priority=-1))


def _draw_nodes(chance: Random, is_tight: bool) -> tuple[NodePlan, ...]:
    num_nodes = chance.choice((1, 2, 2, 2, 3, 3, 4, 5, 6, 8))
    steps_in_flight = chance.randint(1, 2)
    small = is_tight or chance.random() < 0.6
    max_draft_tokens = chance.choice((0, 0, 1, 2, 5))
    copy_s_per_block = 0.0002 if is_tight else chance.choice((None, 0.0002, 0.0002, 0.0015))
    roles = [chance.choice(("prefill", "decode", "mixed", "prefill", "decode")) for _ in range(num_nodes)]
    if num_nodes > 1 and chance.random() < 0.7:
        roles[:2] = "prefill", chance.choice(("decode", "decode", "mixed"))
    return tuple(
        NodePlan(
            f"node-{i}",
            role,
            chance.randint(4, 16) if small else chance.randint(16, 64),
            chance.choice((2, 4, 8, 16)),
            chance.choice((2, 4, 8)),
            steps_in_flight,
            max_draft_tokens,
            chance.choice((4, 12, 64)),
            copy_s_per_block,
        )
        for i, role in enumerate(roles)
    )


def _draw_costs(chance: Random) -> Costs:
    fetch_s, block_s = chance.choice(((0.0005, 0.0005), (0.002, 0.002), (0.001, 0.006)))
    step = StepCosts(fixed_s=chance.choice((0.002, 0.006, 0.012, 0.03)))
    return Costs(
        step, LinkCosts(chance.choice((0.0003, 0.002)), fetch_s, block_s), jitter=chance.choice((0.2, 1.0, 3.0))
    )


def _draw_arrivals(
    chance: Random,
    block_size: int,
    gateways: tuple[GatewayId, ...],
    faults: frozenset[Fault],
    lengths: tuple[int, ...],
) -> tuple[Arrival, ...]:
    num_requests = chance.randint(20, 60)
    span_s = chance.choice((0.02, 0.1, 0.3, 0.8))
    stems = [[chance.randrange(VOCAB_SIZE) for _ in range(16)] for _ in range(3)]
    arrivals: list[Arrival] = []
    while len(arrivals) < num_requests:
        at = chance.uniform(0.0, span_s)
        num_choices = chance.randint(2, 4) if chance.random() < 0.1 else 1
        prompt, max_tokens = _draw_prompt(chance, block_size, stems), chance.choice(lengths)
        name, hurry = len(arrivals), Fault.DEADLINE in faults
        for request in _draw_choices(chance, name, num_choices, block_size, prompt, max_tokens, hurry):
            leaves_after = chance.randint(1, 4) if Fault.STOP in faults and chance.random() < 0.2 else None
            if Fault.CANCEL in faults and chance.random() < 0.05:
                leaves_after = 0
            arrivals.append(Arrival(at + 0.002 * chance.random(), chance.choice(gateways), request, leaves_after))
    return tuple(arrivals)


def _draw_choices(
    chance: Random,
    first: int,
    num_choices: int,
    block_size: int,
    token_ids: list[int],
    max_tokens: int,
    may_hurry: bool,
) -> list[Request]:
    """Requests that differ in nothing but their choice."""
    seed = chance.getrandbits(32)
    tenant, priority = chance.choice(("", "", "blue")), chance.choice((0, 0, 0, 1))
    deadline_s = chance.uniform(0.02, 0.5) if may_hurry and chance.random() < 0.15 else 60.0
    tpot_s, ignore_eos = chance.choice((0.1, 0.1, 1.0)), chance.random() < 0.3
    logprobs, prompt_logprobs = chance.choice((None, None, None, 0, 2)), chance.choice((None,) * 7 + (0, 1))
    return [
        make_request(
            f"r{first + choice}",
            token_ids,
            max_tokens,
            block_size=block_size,
            seed=seed,
            tenant=tenant,
            priority=priority,
            deadline_s=deadline_s,
            tpot_s=tpot_s,
            ignore_eos=ignore_eos,
            choice=choice,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        for choice in range(num_choices)
    ]


def _draw_prompt(chance: Random, block_size: int, stems: list[list[int]]) -> list[int]:
    """A stem that others share and words of its own; one in five fills its last block."""
    stem = chance.choice(stems)[: chance.randint(0, 10)]
    token_ids = stem + [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(0 if stem else 1, 5))]
    if chance.random() < 0.2:
        token_ids += [chance.randrange(VOCAB_SIZE) for _ in range(-len(token_ids) % block_size)]
    return token_ids
