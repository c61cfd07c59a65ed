"""The scheduler with two gateways: each hears of its own requests, and one that is lost takes only its own with it."""

from core.commands import Command, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    Dropped,
    Event,
    NodeLost,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    RequestResumed,
    StreamEnded,
    Submitted,
    Tick,
)
from core.goodput import Outcome
from core.ids import GatewayId, NodeId, RequestId
from core.lifecycle import RequestState
from core.membership import GatewayLost
from core.request import Prompt, Request, SamplingParams
from scheduler.scheduler import Scheduler
from tests.machines.test_scheduler import make, submitted

ONE, OTHER = GatewayId("gateway-1"), GatewayId("gateway-2")


def arrive(scheduler: Scheduler, name: str, gateway: GatewayId, num_tokens: int = 8) -> list[Command]:
    """A request at one of the gateways; what the scheduler says."""
    request = Request(RequestId(name), Prompt(num_tokens), b"\0\0\0\0" * num_tokens, SamplingParams(8))
    return scheduler.handle(RequestArrived(request, gateway), 0.0)


def told(commands: list[Command], kind: type[Event]) -> dict[str, str]:
    """Who is told events of a kind, by the request or attempt that they are about."""
    found = [command for command in commands if isinstance(command, Tell) and isinstance(command.event, kind)]
    return {getattr(each.event, "request", None) or getattr(each.event, "attempt"): each.to for each in found}  # noqa: B009


def finish(scheduler: Scheduler, attempt: Submitted, end: AttemptEnd) -> None:
    """All nodes report an attempt gone."""
    for node in list(scheduler.view.nodes_of(attempt.attempt)):
        scheduler.handle(AttemptFinished(attempt.attempt, node, end), 1.0)


def test_nodes_are_told_whose_request_it_is_and_each_gateway_hears_the_end_of_its_own() -> None:
    scheduler = make(p=("prefill", 20), d=("decode", 20))
    one, other = (submitted(arrive(scheduler, name, at))[0] for name, at in (("a", ONE), ("b", OTHER)))
    assert (one.gateway, other.gateway) == (ONE, OTHER)
    assert told(arrive(scheduler, "big", OTHER, 400), RequestEnded) == {"big": OTHER}
    late = scheduler.handle(Tick(), 10_000.0)
    assert told(late, RequestEnded) == {"a": ONE, "b": OTHER}
    scheduler.check()


def test_a_lost_node_is_told_to_the_gateway_of_each_attempt() -> None:
    scheduler = make(p=("prefill", 100), d=("decode", 100))
    for name, at in (("a", ONE), ("b", OTHER)):
        arrive(scheduler, name, at)
    lost = scheduler.handle(NodeLost(NodeId("d"), "gone"), 1.0)
    assert told(lost, AttemptLost) == {"a#0": ONE, "b#0": OTHER}


def test_the_requests_of_a_lost_gateway_end_in_every_state_and_those_of_others_go_on() -> None:
    scheduler = make(p1=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    (resuming,) = submitted(arrive(scheduler, "resuming", ONE))
    scheduler.handle(AttemptFinished(resuming.attempt, resuming.decode_node, AttemptEnd.KV_LOST), 0.5)
    (routed,), (kept,) = submitted(arrive(scheduler, "routed", ONE)), submitted(arrive(scheduler, "kept", OTHER))
    while scheduler.num_waiting == 0:
        arrive(scheduler, f"more-{scheduler.num_live}", OTHER)
    arrive(scheduler, "waiting", ONE)
    states = {name: scheduler.state_of(RequestId(name)) for name in ("resuming", "routed", "waiting")}
    assert states == {name: RequestState(name) for name in states}

    commands = scheduler.handle(GatewayLost(ONE, "its process ended"), 1.0)

    assert {scheduler.state_of(RequestId(name)) for name in states} == {RequestState.ENDED}
    assert scheduler.requests_of(ONE) == ()
    dropped = [command.to for command in commands if isinstance(command, Tell) and command.event == Dropped("routed#0")]
    assert sorted(dropped) == sorted({"p1", routed.decode_node})
    assert not [command for command in commands if isinstance(command, Tell) and command.to in (ONE, OTHER)]
    assert scheduler.state_of(RequestId("kept")) is RequestState.ROUTED
    assert scheduler.view.nodes_of(kept.attempt)
    scheduler.check()


def test_credits_of_a_lost_gateway_come_back_with_the_blocks_and_not_before() -> None:
    scheduler = make(p=("prefill", 20), d=("decode", 20))
    (asked,) = submitted(arrive(scheduler, "a", ONE))
    scheduler.handle(GatewayLost(ONE, "gone"), 0.5)
    assert not scheduler.is_idle(), "its blocks are not back"
    finish(scheduler, asked, AttemptEnd.DROPPED)
    assert scheduler.is_idle()


def test_what_a_lost_gateway_sent_before_begins_nothing() -> None:
    scheduler = make(p=("prefill", 100), d=("decode", 100))
    scheduler.handle(GatewayLost(ONE, "gone"), 0.5)
    before = scheduler.num_dropped_events
    assert arrive(scheduler, "late", ONE) == []
    assert scheduler.state_of(RequestId("late")) is RequestState.ENDED
    for event in (RequestResumed(RequestId("late"), b""), RequestCancelled(RequestId("late"))):
        assert scheduler.handle(event, 0.6) == []
    assert scheduler.handle(StreamEnded(RequestId("late"), Outcome.FINISHED), 0.6) == []
    assert scheduler.num_dropped_events == before + 4
    assert submitted(arrive(scheduler, "next", OTHER)), "others are served"


def test_losing_a_gateway_that_nobody_knows_or_twice_changes_nothing() -> None:
    scheduler = make(p=("prefill", 100), d=("decode", 100))
    (asked,) = submitted(arrive(scheduler, "a", OTHER))
    for _ in range(2):
        assert scheduler.handle(GatewayLost(ONE, "gone"), 0.5) == []
    assert scheduler.view.nodes_of(asked.attempt)
    scheduler.check()
