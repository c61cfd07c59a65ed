"""Runs in which readers copy what its owner has freed and filled again; what chaos draws hardly ever comes to it.

A link is severed, and its owner hears of it before its reader does. The owner frees what it has lent and soon fills
the same blocks with another prompt, since its pool is small. The reader still copies, since the transport is slow and
not fenced. Only generations and digests keep foreign bytes from it.
"""

from random import Random

from cluster.simulated.costs import Costs, LinkCosts
from cluster.simulated.scenario import Arrival, Fault, NodePlan, Scenario, make_request, shrunk
from core.ids import GatewayId

ROLES = ("prefill", "prefill", "decode", "decode")
NUM_REQUESTS = 40
SPAN_S = 4.0


def draw(seed: int) -> Scenario:
    """Each pool that lends holds one or two prompts; links are severed often, and a block takes a fifth of a second."""
    chance = Random(seed)
    return Scenario(
        seed,
        tuple(_node(f"node-{i}", role, chance) for i, role in enumerate(ROLES)),
        tuple(_arrival(number, chance) for number in range(NUM_REQUESTS)),
        timers=shrunk(0.3),
        costs=Costs(link=LinkCosts(block_s=0.2), jitter=1.0),
        faults=frozenset({Fault.SEVER}),
        fault_rate=6.0,
        fenced_transport=False,
        overcommit=True,
    )


def _node(name: str, role: str, chance: Random) -> NodePlan:
    return NodePlan(name, role, chance.randint(6, 8) if role == "prefill" else 32, prefill_tokens_per_step=16)


def _arrival(number: int, chance: Random) -> Arrival:
    token_ids = [chance.randrange(1, 60) for _ in range(chance.randint(8, 18))]
    request = make_request(f"r{number}", token_ids, chance.randint(2, 6), seed=number, ignore_eos=True)
    return Arrival(SPAN_S * chance.random(), GatewayId("gateway-0"), request)
