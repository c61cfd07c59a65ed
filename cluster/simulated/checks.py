"""What must hold when a run is over: every answer right, every end allowed, nothing left anywhere."""

from dataclasses import replace

from cluster.simulated.door import Answer
from cluster.simulated.scenario import HARMFUL, Fault, Scenario
from cluster.simulated.world import World
from core.goodput import Outcome
from core.kv import num_blocks

CLOSING = frozenset({Fault.MIX, Fault.DRAIN})
"""Where both are on, the operator may close all nodes at once."""


def check_end(world: World) -> None:
    """Raises AssertionError with what is wrong."""
    for door in world.doors.values():
        for answer in door.answers.values():
            check_answer(answer, world.scenario)
    assert_idle(world)


def check_answer(answer: Answer, scenario: Scenario) -> None:
    """Tokens were compared as they came; here: one end, a fitting one, and nothing missing before it."""
    request, ended = answer.arrival.request, answer.ended
    assert ended is not None, f"{request.id} has no end"
    match ended.outcome:
        case Outcome.FINISHED if not answer.has_left:
            assert tuple(answer.token_ids) == answer.right, (
                f"{request.id}: {len(answer.token_ids)} of {len(answer.right)} tokens"
            )
            assert ended.finish is answer.finish, f"{request.id}: {ended.finish}, should be {answer.finish}"
            wants_scores = request.sampling.prompt_logprobs is not None
            assert answer.has_scores == wants_scores, f"{request.id}: scores of its prompt: {answer.has_scores}"
        case Outcome.FINISHED:
            assert answer.arrival.leaves_after is not None
        case Outcome.CANCELLED:
            assert answer.was_cancelled, f"{request.id}: nobody cancelled it"
        case Outcome.EXPIRED:
            assert request.deadline_s < 10.0, f"{request.id}: was stuck until its deadline"
        case Outcome.FAILED | Outcome.REFUSED:
            is_closed = ended.error is not None and ended.error.code == "unavailable" and scenario.faults >= CLOSING
            is_harmed = scenario.by_hand or is_closed or scenario.faults & HARMFUL
            harmed = is_harmed or not fits_everywhere(answer, scenario)
            assert harmed, f"{request.id}: {ended.outcome} ({ended.error}), though nothing went wrong"


def fits_everywhere(answer: Answer, scenario: Scenario) -> bool:
    """Whether every node's pool can hold the whole answer."""
    request = answer.arrival.request
    needed = num_blocks(request.prompt.num_tokens + request.sampling.max_tokens, scenario.block_size)
    return all(needed <= node.num_blocks for node in scenario.nodes)


def assert_idle(world: World) -> None:
    """Every machine is idle and consistent; of the blocks only free and cached ones are left."""
    assert not world.noise(), world.noise()
    world.scheduler.check()
    for door in world.doors.values():
        door.streams.check()
        assert door.streams.is_idle(), f"{door.gateway} is not idle"
    for host in world.alive():
        host.machine.check()
        blocks = host.machine.stats().blocks
        believed = replace(world.scheduler.view.nodes[host.node].mix, epoch=host.machine.mix.epoch)
        assert host.machine.mix == believed, f"{host.node} works by {host.machine.mix}, the scheduler by {believed}"
        assert blocks.free + blocks.cached == blocks.capacity, f"{host.node}: blocks are missing: {blocks}"
