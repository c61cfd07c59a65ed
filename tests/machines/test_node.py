"""One node, events in and commands compared: what is too rare for chaos to meet."""

from collections.abc import Sequence

from cluster.node import Node, NodeConfig
from core.commands import Command, Emit, FetchKV, Lend, RunStep, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    ClaimAnswered,
    Claimed,
    Dropped,
    LeasesRenewed,
    Lent,
    MixChanged,
    Offered,
    Sealed,
    StepDone,
    Submitted,
    Tick,
)
from core.ids import SCHEDULER, AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.step import StepPlan, StepResult

P, D, G = NodeId("p@0"), NodeId("d@0"), GatewayId("g")
KV = KVLayout(1, 1, 1, 4, "float32")
ATTEMPT = AttemptId("r#0")


def make(role: str = "prefill", node: NodeId = P) -> Node:
    """A node of 8 blocks of 4 tokens; a step takes 4 prompt tokens."""
    return Node(node, NodeConfig(LayoutId("l"), KV, 8, 64, frozenset({1}), mix_of(role, 4, 8)))


def submitted(num_tokens: int, max_tokens: int = 8, decode: NodeId = D) -> Submitted:
    """An attempt without cached prefix."""
    sampling = SamplingParams(max_tokens=max_tokens)
    ids = pack_tokens(range(10, 10 + num_tokens))
    return Submitted(ATTEMPT, Request(RequestId("r"), Prompt(num_tokens), ids, sampling), b"", G, decode, 0.0)


def done(plan: StepPlan, tokens: Sequence[int] = ()) -> StepDone:
    """The step as it was planned; its rows sample `tokens`, the first ones first."""
    attempts = plan.attempts[: len(tokens)]
    digests = tuple(bytes([block]) * 16 for block in plan.seal)
    return StepDone(StepResult(plan.step, attempts, tuple(tokens), plan.seal, digests, 0.01))


def plan_of(commands: Sequence[Command]) -> StepPlan:
    """The one step among the commands."""
    (plan,) = [command.plan for command in commands if isinstance(command, RunStep)]
    return plan


def told(commands: Sequence[Command], kind: type) -> list[object]:
    """The events of a kind among what is told."""
    return [command.event for command in commands if isinstance(command, Tell) and isinstance(command.event, kind)]


def test_chunks_are_offered_while_later_ones_are_computed() -> None:
    node = make()
    first = plan_of(node.handle(submitted(10), 0.0))
    assert (first.num_tokens, len(first.joined[0].block_ids)) == ((4,), 3)
    commands = node.handle(done(first), 1.0)
    (offer,) = told(commands, Offered)
    assert isinstance(offer, Offered) and offer.handle.block_ids == first.seal and offer.done is None
    second = plan_of(commands)
    (sealed,) = told(node.handle(done(second), 2.0), Sealed)
    assert isinstance(sealed, Sealed) and sealed.handle.first_block == 1 and sealed.done is None
    node.check()


def test_an_unclaimed_lease_that_nobody_renews_ends_an_attempt_in_mid_prefill() -> None:
    node, lease_s = make(), 10.0
    running = plan_of(node.handle(done(plan_of(node.handle(submitted(10), 0.0))), 1.0))
    assert told(node.handle(Tick(), 1.0 + 0.9 * lease_s), AttemptFinished) == []
    node.handle(LeasesRenewed(D, (ATTEMPT,)), 1.0 + 0.9 * lease_s)
    assert told(node.handle(Tick(), 1.0 + 1.5 * lease_s), AttemptFinished) == []
    assert told(node.handle(Tick(), 1.0 + 2.0 * lease_s), AttemptFinished) == [], "a step still writes its blocks"
    assert node.stats().blocks.quarantined == 3
    commands = node.handle(done(running), 1.0 + 2.1 * lease_s)
    assert told(commands, AttemptFinished) == [AttemptFinished(ATTEMPT, P, AttemptEnd.KV_LOST)]
    assert node.is_idle()
    assert node.stats().blocks.free == 8
    node.check()


def test_a_claimed_lease_never_ends_by_time() -> None:
    node = make()
    node.handle(done(plan_of(node.handle(submitted(4), 0.0)), (7,)), 1.0)
    assert node.handle(Claimed(ATTEMPT, D), 1.5) == [Lend(ATTEMPT, D)]
    assert told(node.handle(Lent(ATTEMPT, D), 1.5), ClaimAnswered) == [ClaimAnswered(ATTEMPT, P, granted=True)]
    assert told(node.handle(Tick(), 1e6), AttemptFinished) == []
    assert told(node.handle(Dropped(ATTEMPT), 1e6), AttemptFinished) == [], "the reader may be copying"
    node.check()


def test_on_a_mixed_node_the_row_stays_and_nothing_is_offered() -> None:
    node = make("mixed")
    commands = node.handle(done(plan_of(node.handle(submitted(4, decode=P), 0.0)), (7,)), 1.0)
    assert told(commands, Offered) == []
    assert [c.tokens.token_ids for c in commands if isinstance(c, Emit)] == [(7,)]
    decode = plan_of(commands)
    assert (decode.attempts, decode.num_tokens, decode.joined) == ((ATTEMPT,), (1,), ())
    assert len(decode.grown[0].block_ids) == 1, "the prompt filled its block"
    node.check()


def test_a_reader_fetches_only_after_its_claim_is_granted_and_only_what_it_has_not() -> None:
    lender, reader = make(), make("decode", D)
    (offer,) = told(lender.handle(done(plan_of(lender.handle(submitted(10), 0.0))), 1.0), Offered)
    assert isinstance(offer, Offered)
    commands = reader.handle(offer, 5.0)
    assert told(commands, Claimed) == [Claimed(ATTEMPT, D)]
    assert not [c for c in commands if isinstance(c, FetchKV)]
    (fetch,) = [c for c in reader.handle(ClaimAnswered(ATTEMPT, P, granted=True), 5.1) if isinstance(c, FetchKV)]
    assert fetch.handle == offer.handle
    assert reader.stats().blocks.receiving == 1
    assert reader.stats().blocks.reserved == 2
    reader.check()


def test_a_submission_that_the_mix_does_not_take_is_refused_and_resident_work_goes_on() -> None:
    node = make()
    running = plan_of(node.handle(submitted(10), 0.0))
    assert node.handle(MixChanged(mix_of("decode", 0, 8, epoch=1)), 0.5) == []
    assert plan_of(node.handle(done(running), 1.0)).num_tokens == (4,)
    other = submitted(4)
    late = Submitted(AttemptId("s#0"), other.request, b"", G, D, 0.0)
    refused = AttemptFinished(late.attempt, P, AttemptEnd.REFUSED)
    assert node.handle(late, 1.5) == [Tell(SCHEDULER, refused)]
    node.check()
