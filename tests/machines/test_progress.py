"""How far answers are, by what nodes count."""

from core.costs import StepWork
from core.ids import AttemptId, GatewayId, NodeId
from scheduler.demand import Route
from scheduler.flight import Flight
from scheduler.progress import Progress
from scheduler.view import ClusterView
from tests.machines.seen import report, request_of, view_of


def flight_of(name: str, decode: str) -> Flight:
    """One under way."""
    request = request_of(100, name=name, tenant=name, max_tokens=40)
    flight = Flight(request, GatewayId("g"), 0.0)
    flight.attempt, flight.route = AttemptId(f"{name}#1"), Route(NodeId("n0"), NodeId(decode))
    return flight


def told(view: ClusterView, node: str, num_steps: int, num_rows: int) -> None:
    """A report: so many steps with rows by now, two of them mixed; so many rows decode."""
    mixed = min(2, num_steps)
    work = StepWork(mixed, num_steps - mixed, 8 * mixed, 0.0, num_steps, 0, mixed, mixed, 0)
    view.believe(NodeId(node), report(work, 0.01 * num_steps, running_rows=num_rows), 0.1 * num_steps)


def test_rows_that_decode_get_a_token_a_step_and_those_that_came_last_do_not_decode_yet() -> None:
    view, progress = view_of("prefill", "decode"), Progress()
    flights = [flight_of(name, "n1") for name in ("a", "b", "c")]
    told(view, "n1", 10, 2)
    assert list(progress.answers(flights, view)) == [], "nothing is known of before"
    told(view, "n1", 17, 3)
    assert list(progress.answers(flights, view)) == [("a", 0, 7), ("b", 0, 7)]
    told(view, "n1", 20, 3)
    assert list(progress.answers(flights[1:], view)) == [("b", 0, 10), ("c", 0, 3)]


def test_no_answer_is_longer_than_it_may_be() -> None:
    view, progress = view_of("prefill", "decode"), Progress()
    flights = [flight_of("a", "n1")]
    told(view, "n1", 1, 1)
    assert list(progress.answers(flights, view)) == []
    told(view, "n1", 500, 1)
    assert list(progress.answers(flights, view)) == [("a", 0, 40)]


def test_a_row_that_moves_keeps_its_tokens() -> None:
    view, progress = view_of("prefill", "decode", "decode"), Progress()
    flights = [flight_of("a", "n1")]
    told(view, "n1", 1, 1)
    list(progress.answers(flights, view))
    told(view, "n1", 9, 1)
    flights[0].route = Route(NodeId("n0"), NodeId("n2"))
    told(view, "n2", 100, 1)
    assert list(progress.answers(flights, view)) == [("a", 0, 8)]
    told(view, "n2", 105, 1)
    assert list(progress.answers(flights, view)) == [("a", 0, 13)]


def test_requests_that_wait_and_nodes_that_are_gone_say_nothing() -> None:
    view, progress = view_of("prefill", "decode"), Progress()
    waiting, gone = flight_of("a", "n1"), flight_of("b", "n7")
    waiting.attempt = None
    told(view, "n1", 5, 1)
    told(view, "n1", 6, 1)
    assert list(progress.answers([waiting, gone], view)) == []
