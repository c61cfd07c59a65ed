"""Where the goodput policy sends a request, whom it has wait, and how the offline class gives way."""

from core.commands import Command, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    Dropped,
    RequestArrived,
    RequestResumed,
    StreamEnded,
    StreamSilent,
    Submitted,
    Tick,
)
from core.goodput import Outcome
from core.ids import NodeId, RequestId
from core.request import SLO
from core.stats import Timing
from scheduler.demand import Refusal, Route
from scheduler.policies.goodput import AHEAD, CROWDED, OFFLINE, Goodput
from scheduler.scheduler import Scheduler
from scheduler.view import ClusterView
from tests.machines.seen import CONFIG, KEYS, demand_of, node, prove, put_prompt, put_rows, request_of, view_of
from tests.machines.test_admission import G, arrive, scheduler_of


def route(view: ClusterView, num_tokens: int = 500, *, waited_s: float = 0.0, **request: object) -> Route | Refusal:
    """Where a request goes, by what is known."""
    demand = demand_of(request_of(num_tokens, **request), waited_s=waited_s)  # type: ignore[arg-type]
    return Goodput(CONFIG).route(demand, view, 0.0)


def names(answer: Route | Refusal) -> tuple[str, str]:
    """Its nodes."""
    assert isinstance(answer, Route), answer
    return str(answer.prefill), str(answer.decode)


def test_a_short_prompt_is_computed_where_it_decodes_and_a_long_one_is_not() -> None:
    view = view_of("prefill", "mixed", budget=256)
    put_rows(view, 1, 12, tpot_s=0.035)
    put_prompt(view, 0, 600)
    prove(view, queued_tokens=600)
    assert names(route(view, 40)) == ("n1", "n1"), "the queue of the other would take longer"
    assert names(route(view, 4000, slo=SLO(3.0, 0.05))) == ("n0", "n1"), "the rows here would have to bear it"


def test_a_long_prompt_that_is_cached_stays_as_well() -> None:
    view = view_of("prefill", "mixed", budget=256)
    put_rows(view, 1, 4, tpot_s=0.035)
    prove(view)
    keys = KEYS[:160]
    view.prefixes.add(NodeId("n1"), demand_of(request_of(2560, keys=keys)).prefixes)
    assert names(route(view, 2560, keys=keys, slo=SLO(3.0, 0.05))) == ("n1", "n1")


def test_a_prefix_is_followed_until_its_node_has_too_much_before_it() -> None:
    view = view_of("prefill", "prefill", "decode")
    keys = KEYS[:64]
    view.prefixes.add(NodeId("n1"), demand_of(request_of(1024, keys=keys)).prefixes)
    assert names(route(view, 1024, keys=keys)) == ("n1", "n2")
    put_prompt(view, 1, 3000)
    assert names(route(view, 1024, keys=keys)) == ("n0", "n2")


def test_rows_go_where_a_step_is_shortest_not_where_most_blocks_are_free() -> None:
    view = view_of("prefill", "decode", "decode")
    put_rows(view, 1, 2, context=50)
    put_rows(view, 2, 1, context=9000)
    assert names(route(view)) == ("n0", "n1")


def test_it_waits_while_nodes_have_enough_before_them() -> None:
    view = view_of("prefill", "decode")
    for _ in range(4):
        put_prompt(view, 0, 1000)
    assert route(view) is AHEAD


def test_it_waits_rather_than_break_what_rows_were_promised_but_not_for_ever() -> None:
    view = view_of("prefill", "decode")
    put_rows(view, 1, 30, tpot_s=0.045)
    prove(view)
    assert route(view, slo=SLO(9.0, 1.0)) is CROWDED
    assert route(view, slo=SLO(9.0, 1.0), waited_s=CONFIG.patience_s) is CROWDED, "all rows would miss"
    assert route(view, slo=SLO(9.0, 1.0), waited_s=17.9) is CROWDED
    assert names(route(view, slo=SLO(9.0, 1.0), waited_s=18.0)) == ("n0", "n1"), "twice its own target"


def test_where_only_its_prompt_harms_the_rows_it_waits_a_little() -> None:
    view = view_of("mixed")
    put_rows(view, 0, 20, tpot_s=0.045)
    prove(view)
    found = [route(view, 8000, slo=SLO(9.0, 1.0), waited_s=waited) for waited in (0.0, CONFIG.patience_s)]
    assert found[0] is CROWDED
    assert names(found[1]) == ("n0", "n0")


def test_a_row_that_is_too_slow_even_alone_does_not_wait() -> None:
    view = view_of("prefill", "decode")
    prove(view)
    assert names(route(view, slo=SLO(9.0, 0.001))) == ("n0", "n1")


def test_nobody_takes_the_room_that_the_first_in_line_waits_for() -> None:
    scheduler = scheduler_of("prefill", "decode")
    put_rows(scheduler.view, 1, 30, tpot_s=0.045)
    arrive(scheduler, request_of(400, name="first", slo=SLO(9.0, 0.05)))
    arrive(scheduler, request_of(10, name="second", slo=SLO(9.5, 0.9)))
    assert scheduler.num_waiting == 2


def test_what_is_due_first_is_told_to_the_node() -> None:
    scheduler = scheduler_of("prefill", "decode")
    (told,) = submitted(arrive(scheduler, request_of(100, slo=SLO(0.8, 0.05)), 1.0))
    assert told.due_s == 0.8
    (free,) = submitted(arrive(scheduler, request_of(100, name="free", slo=None), 1.0))
    assert free.due_s == CONFIG.due_s


# ── the offline class ────────────────────────────────────────────────────────────────────────────────────────────────


def submitted(commands: list[Command]) -> list[Submitted]:
    """The submissions among commands."""
    return [c.event for c in commands if isinstance(c, Tell) and isinstance(c.event, Submitted)]


def test_the_offline_class_goes_only_where_nothing_waits_and_rows_have_time() -> None:
    idle = view_of("prefill", "decode")
    assert names(route(idle, priority=-1)) == ("n0", "n1")
    put_prompt(idle, 0, 1000)
    assert route(idle, priority=-1) is OFFLINE
    busy = view_of("prefill", "decode")
    put_rows(busy, 1, 24, tpot_s=0.045)
    assert route(busy, priority=-1) is OFFLINE
    assert isinstance(route(busy), Route)


def test_nobody_of_the_offline_class_starts_while_others_wait() -> None:
    scheduler = scheduler_of("prefill", "decode")
    put_rows(scheduler.view, 1, 30, tpot_s=0.045)
    arrive(scheduler, request_of(400, name="online", slo=SLO(9.0, 0.05)))
    assert submitted(arrive(scheduler, request_of(10, name="offline", slo=None, priority=-1))) == []
    assert scheduler.num_waiting == 2


def full_of_offline() -> tuple[Scheduler, list[Submitted]]:
    """Pools that the offline class has filled."""
    scheduler = scheduler_of("prefill", "decode", blocks=100)
    taken: list[Submitted] = []
    for i in range(12):
        request = request_of(160, name=f"offline {i}", slo=None, priority=-1, max_tokens=100)
        for told in submitted(arrive(scheduler, request, i * 1.0)):
            taken.append(told)
            scheduler.handle(AttemptFinished(told.attempt, NodeId("n0"), AttemptEnd.HANDED_OFF), i + 0.5)
    return scheduler, taken


def test_others_get_back_the_room_that_the_offline_class_has() -> None:
    scheduler, taken = full_of_offline()
    assert len(taken) >= 5 and scheduler.num_waiting > 0
    commands = arrive(scheduler, request_of(300, name="online", max_tokens=100), 20.0)
    lost = [c.event.attempt for c in commands if isinstance(c, Tell) and isinstance(c.event, AttemptLost)]
    dropped = [c.event.attempt for c in commands if isinstance(c, Tell) and isinstance(c.event, Dropped)]
    assert lost and lost == dropped
    assert lost[0] == taken[-1].attempt, "the youngest first"
    started: list[Submitted] = []
    for attempt in lost:
        started += submitted(scheduler.handle(AttemptFinished(attempt, NodeId("n1"), AttemptEnd.DROPPED), 20.1))
    assert [told.request.id for told in started] == ["online"]
    scheduler.check()


def test_what_gave_way_comes_back_with_its_answer_and_has_lost_no_try() -> None:
    scheduler, taken = full_of_offline()
    last = taken[-1]
    arrive(scheduler, request_of(300, name="online", max_tokens=100), 20.0)
    scheduler.handle(AttemptFinished(last.attempt, NodeId("n1"), AttemptEnd.DROPPED), 20.1)
    scheduler.handle(RequestResumed(last.request.id, b"\0\0\0\0" * 3), 20.2)
    scheduler.handle(StreamEnded(RequestId("online"), Outcome.FINISHED), 21.0)
    for attempt in [each.attempt for each in taken[:-1]] + [a for a in scheduler.view._where if a.startswith("online")]:
        for name in scheduler.view.nodes_of(attempt):
            scheduler.handle(AttemptFinished(attempt, name, AttemptEnd.FINISHED), 22.0)
    again = [told for told in submitted(scheduler.handle(Tick(), 30.0)) if told.request.id == last.request.id]
    flights = scheduler._flights
    flight = flights[last.request.id]
    assert again or flight.attempt is not None
    assert (flight.num_tries, flight.num_losses, flight.num_preemptions) == (0, 0, 1)
    assert flight.log == b"\0\0\0\0" * 3


def test_a_row_of_the_offline_class_that_was_paused_for_long_gives_way_for_good() -> None:
    scheduler, taken = full_of_offline()
    for _ in range(5):
        commands = scheduler.handle(StreamSilent(taken[0].request.id), 30.0)
    flight = scheduler._flights[taken[0].request.id]
    assert (flight.num_tries, flight.num_preemptions) == (0, 1)
    assert commands == []


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_credits_grow_with_the_answers_that_were_seen() -> None:
    scheduler = scheduler_of("prefill", "decode")
    arrive(scheduler, request_of(160, name="a", max_tokens=4000))
    before = scheduler.view.nodes[NodeId("n1")].booked_blocks
    assert before == (160 + CONFIG.expected_output_tokens) // 16
    for _ in range(300):
        scheduler.view.lengths.learn("", 0, 1600)
    arrive(scheduler, request_of(160, name="b", max_tokens=4000))
    grown = scheduler.view.nodes[NodeId("n1")].booked_blocks - before
    assert 90 <= grown <= 120, "about 1,600 tokens"


def test_a_finished_request_teaches_length_errors_and_what_was_not_cached() -> None:
    scheduler = scheduler_of("prefill", "decode")
    keys = KEYS[:64]
    scheduler.view.prefixes.add(NodeId("n0"), demand_of(request_of(1024, keys=keys)).prefixes)
    arrive(scheduler, request_of(1024, keys=keys))
    assert (
        scheduler.view.prefixes.depth(demand_of(request_of(1024, keys=keys)).prefixes, node(scheduler.view, 0).bit, 8)
        == 8
    )
    timing = Timing(0.0, 0.1, 0.3, 0.0, 0.01, 0.0, 1.0, num_cached_tokens=256)
    scheduler.handle(StreamEnded(RequestId("r"), Outcome.FINISHED, 90, timing), 2.0)
    assert scheduler.view.lengths.num_seen == 1
    assert scheduler.predictor.ttft.safety > scheduler.predictor.ttft.__class__(0.9).safety
    prefixes = demand_of(request_of(1024, keys=keys)).prefixes
    assert scheduler.view.prefixes.depth(prefixes, node(scheduler.view, 0).bit, 8) == 2


def test_a_request_that_was_tried_twice_or_failed_teaches_nothing_about_times() -> None:
    scheduler = scheduler_of("prefill", "decode")
    before = scheduler.predictor.ttft.safety
    arrive(scheduler, request_of(100))
    scheduler.handle(StreamEnded(RequestId("r"), Outcome.FAILED, 3, Timing(9.0, 9.0)), 2.0)
    assert scheduler.predictor.ttft.safety == before and scheduler.view.lengths.num_seen == 0


def test_a_late_request_lets_others_pass() -> None:
    scheduler = scheduler_of("prefill", "decode")
    put_rows(scheduler.view, 1, 30, tpot_s=0.045)
    scheduler.handle(RequestArrived(request_of(400, name="late", slo=SLO(4.0, 0.05)), G), 0.0)
    assert scheduler.num_waiting == 1
    scheduler.handle(Tick(), 4.5)
    assert scheduler._flights[RequestId("late")].is_late
