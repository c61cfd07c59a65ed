"""The scheduler, events in and commands compared: who is routed where, and who stands in nobody's way."""

from dataclasses import replace

from core.commands import Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    NodeJoined,
    NodeLost,
    RequestArrived,
    RequestEnded,
    RequestResumed,
    StreamEnded,
    StreamSilent,
    Submitted,
)
from core.goodput import Outcome
from core.ids import AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import Prompt, Request, SamplingParams
from scheduler.config import SchedulerConfig
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.scheduler import Scheduler

G = GatewayId("g")
KV = KVLayout(1, 1, 1, 4, "float32")


def make(**nodes: tuple[str, int]) -> Scheduler:
    """A scheduler that knows nodes by name: role and pool. A node decodes at most 2 rows."""
    scheduler = Scheduler(SchedulerConfig(), LeastLoaded())
    for name, (role, num_blocks) in nodes.items():
        spec = NodeSpec(LayoutId("l"), KV, num_blocks, 4096, mix_of(role, 16, 2))
        scheduler.handle(NodeJoined(NodeId(name), spec), 0.0)
    return scheduler


def arrive(
    scheduler: Scheduler,
    name: str,
    num_tokens: int = 8,
    max_tokens: int = 8,
    now: float = 0.0,
    *,
    tail: bytes = b"",
    **sampling: int,
) -> list[Submitted]:
    """A request; what was submitted because of it. `tail` names its prompt."""
    prompt, params = Prompt(num_tokens, (), tail), replace(SamplingParams(max_tokens), **sampling)
    request = Request(RequestId(name), prompt, b"\0\0\0\0" * num_tokens, params)
    return submitted(scheduler.handle(RequestArrived(request, G), now))


def submitted(commands: object) -> list[Submitted]:
    """The submissions among commands."""
    assert isinstance(commands, list)
    return [command.event for command in commands if isinstance(command, Tell) and isinstance(command.event, Submitted)]


def lose(scheduler: Scheduler, attempt: AttemptId, node: str, end: AttemptEnd, now: float) -> list[Submitted]:
    """A node reports an attempt lost, the gateway answers, time passes: the next try."""
    scheduler.handle(AttemptFinished(attempt, NodeId(node), end), now)
    for other in scheduler.view.nodes_of(attempt):
        scheduler.handle(AttemptFinished(attempt, other, AttemptEnd.DROPPED), now)
    first = submitted(scheduler.handle(RequestResumed(RequestId(attempt.partition("#")[0]), b""), now))
    return first or submitted(scheduler.handle(StreamEnded(RequestId("nobody"), Outcome.FINISHED), now + 5.0))


def test_a_request_that_fits_no_node_any_more_holds_nobody_up() -> None:
    scheduler = make(p1=("prefill", 100), d1=("decode", 100), p2=("prefill", 10), d2=("decode", 10))
    (big,) = arrive(scheduler, "big", 200)
    scheduler.handle(NodeLost(NodeId("d1"), "gone"), 1.0)
    scheduler.handle(AttemptFinished(big.attempt, NodeId("p1"), AttemptEnd.DROPPED), 1.0)
    scheduler.handle(RequestResumed(RequestId("big"), b""), 1.0)
    for i in range(3 * scheduler.config.max_skips):
        (small,) = arrive(scheduler, f"s{i}", now=1.0 + i / 100)
        for node in scheduler.view.nodes_of(small.attempt):
            scheduler.handle(AttemptFinished(small.attempt, node, AttemptEnd.FINISHED), 1.0 + i / 100)
        scheduler.handle(StreamEnded(RequestId(f"s{i}"), Outcome.FINISHED), 1.0 + i / 100)
    assert scheduler.num_waiting == 1
    scheduler.check()


def test_after_lost_kv_another_pair_is_taken() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    (first,) = arrive(scheduler, "r")
    used = set(scheduler.view.nodes_of(first.attempt))
    (second,) = lose(scheduler, first.attempt, str(first.decode_node), AttemptEnd.KV_LOST, 1.0)
    assert used.isdisjoint(scheduler.view.nodes_of(second.attempt))
    scheduler.check()


def test_a_silent_node_is_not_tried_again_where_there_is_another() -> None:
    scheduler = make(p=("prefill", 100), d1=("decode", 100), d2=("decode", 200))
    (first,) = arrive(scheduler, "r")
    assert first.decode_node == "d1"
    scheduler.handle(AttemptFinished(first.attempt, NodeId("p"), AttemptEnd.HANDED_OFF), 0.5)
    scheduler.handle(StreamSilent(RequestId("r")), 6.0)
    scheduler.handle(RequestResumed(RequestId("r"), b""), 6.0)
    (second,) = submitted(scheduler.handle(StreamEnded(RequestId("nobody"), Outcome.FINISHED), 8.0))
    assert second.decode_node == "d2"


def test_refusals_are_followed_by_growing_pauses_and_cost_no_try() -> None:
    scheduler = make(a=("mixed", 100))
    (attempt,) = arrive(scheduler, "r")
    now, num_routes = 0.0, 0
    while now < 10.0:
        scheduler.handle(AttemptFinished(attempt.attempt, NodeId("a"), AttemptEnd.REFUSED), now)
        scheduler.handle(RequestResumed(RequestId("r"), b""), now)
        while not (again := submitted(scheduler.handle(StreamEnded(RequestId("nobody"), Outcome.FINISHED), now))):
            now += 0.01
        attempt, num_routes = again[0], num_routes + 1
    assert 5 < num_routes < 20


def test_no_node_is_promised_more_rows_than_it_runs_at_once() -> None:
    scheduler = make(p=("prefill", 1000), d1=("decode", 1000), d2=("decode", 1000))
    routes = [arrive(scheduler, f"r{i}") for i in range(6)]
    assert [len(route) for route in routes] == [1, 1, 1, 1, 0, 0]
    done = routes[0][0]
    again = submitted(scheduler.handle(AttemptFinished(done.attempt, done.decode_node, AttemptEnd.FINISHED), 1.0))
    assert [request.decode_node for request in again] == [done.decode_node]
    scheduler.check()


def test_a_request_larger_than_every_pool_is_refused_with_both_numbers() -> None:
    scheduler = make(p=("prefill", 10), d=("decode", 10))
    request = Request(RequestId("r"), Prompt(40), b"\0" * 160, SamplingParams(8))
    (told,) = scheduler.handle(RequestArrived(request, G), 0.0)
    assert isinstance(told, Tell) and isinstance(told.event, RequestEnded)
    assert told.event.error.code == "request_too_large_for_cluster"
    assert "12" in told.event.error.message and "10" in told.event.error.message


def places(scheduler: Scheduler, *submissions: list[Submitted]) -> list[str]:
    """The prefill nodes of these, which decode elsewhere."""
    return [
        str(node)
        for (submission,) in submissions
        for node in scheduler.view.nodes_of(submission.attempt)
        if node != submission.decode_node
    ]


def test_choices_of_one_prompt_follow_each_other_to_the_node_that_computes_it() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    routes = [arrive(scheduler, f"c{i}", 32, tail=b"same", choice=i) for i in range(4)]
    assert places(scheduler, *routes) == ["p1"] * 4
    scheduler.check()


def test_other_prompts_go_where_less_waits() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    routes = [arrive(scheduler, f"r{i}", 32, tail=bytes([i])) for i in range(4)]
    assert places(scheduler, *routes) == ["p1", "p2", "p1", "p2"]


def test_a_choice_goes_elsewhere_when_the_queue_of_its_node_is_longer_than_its_prompt() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 200), d2=("decode", 200))
    first = arrive(scheduler, "c0", 16, tail=b"same")
    arrive(scheduler, "other", 64, tail=b"other")
    behind = arrive(scheduler, "third", 32, tail=b"third")
    second = arrive(scheduler, "c1", 16, tail=b"same", choice=1)
    assert places(scheduler, first, behind, second) == ["p1", "p1", "p1"], "48 tokens here, 64 and 16 there"
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 200), d2=("decode", 200))
    first = arrive(scheduler, "c0", 16, tail=b"same")
    arrive(scheduler, "other", 20, tail=b"other")
    behind = arrive(scheduler, "third", 32, tail=b"third")
    second = arrive(scheduler, "c1", 16, tail=b"same", choice=1)
    assert places(scheduler, first, behind, second) == ["p1", "p1", "p2"], "48 tokens here, 20 and 16 there"
    scheduler.check()


def test_who_wants_scores_of_its_prompt_follows_nobody_and_nobody_waits_for_a_prompt_that_is_over() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    (first,) = arrive(scheduler, "c0", 32, tail=b"same")
    scored = arrive(scheduler, "scored", 32, tail=b"same", prompt_logprobs=1)
    assert places(scheduler, [first], scored) == ["p1", "p2"]
    scheduler.handle(AttemptFinished(first.attempt, NodeId("p1"), AttemptEnd.HANDED_OFF), 1.0)
    assert not scheduler.view.nodes[NodeId("p1")].prompts
    scheduler.check()


def test_a_retry_avoids_the_node_that_failed_though_its_prompt_is_booked_there() -> None:
    scheduler = make(p1=("prefill", 100), p2=("prefill", 100), d1=("decode", 100), d2=("decode", 100))
    (first,), (second,) = (arrive(scheduler, f"c{i}", 32, tail=b"same", choice=i) for i in range(2))
    assert places(scheduler, [first], [second]) == ["p1", "p1"]
    again = lose(scheduler, first.attempt, str(first.decode_node), AttemptEnd.KV_LOST, 1.0)
    assert places(scheduler, again) == ["p2"]
    scheduler.check()
