"""Whose turn it is: class first, then fair shares among tenants, then who is due first."""

from core.ids import GatewayId
from core.request import SLO
from scheduler.flight import Flight
from scheduler.queue import LATE_S, MAX_IDLE, WaitingQueue
from tests.machines.seen import request_of

NUMBER = iter(range(1_000_000))


def flight(tenant: str = "", num_tokens: int = 100, priority: int = 0, due: float = 1.0) -> Flight:
    """A request that waits."""
    request = request_of(num_tokens, name=f"r{next(NUMBER)}", tenant=tenant, priority=priority, slo=SLO(due, 0.1))
    return Flight(request, GatewayId("g"), 0.0)


def queue_of(*flights: Flight, shares: tuple[tuple[str, float], ...] = ()) -> WaitingQueue:
    """All in a queue; due at their TTFT."""
    queue = WaitingQueue(shares)
    for each in flights:
        assert each.request.slo is not None
        queue.add(each, each.request.slo.ttft_s)
    return queue


def served(queue: WaitingQueue, number: int) -> list[str]:
    """The tenants of the next ones, each served when it is its turn."""
    names = []
    for _ in range(number):
        first = next(queue.flights())
        names.append(first.request.tenant)
        queue.serve(first, first.num_tokens, 0.0)
    return names


def test_the_most_urgent_of_one_tenant_goes_first() -> None:
    late, soon = flight(due=5.0), flight(due=0.5)
    assert list(queue_of(late, soon).flights()) == [soon, late]


def test_a_higher_class_goes_before_and_the_offline_class_behind_all() -> None:
    offline, usual, high = flight(priority=-1, due=0.1), flight(due=0.2), flight(priority=3, due=9.0)
    assert list(queue_of(offline, usual, high).flights()) == [high, usual, offline]


def test_a_greedy_tenant_gets_its_share_and_no_more() -> None:
    greedy = [flight("greedy") for _ in range(90)]
    queue = queue_of(*greedy, *(flight("small") for _ in range(10)))
    names = served(queue, 20)
    assert names.count("small") == 10, "every other one, though the other came first with nine times as many"


def test_shares_are_of_tokens_not_of_requests() -> None:
    queue = queue_of(*(flight("large", 900) for _ in range(20)), *(flight("small", 100) for _ in range(60)))
    names = served(queue, 40)
    assert abs(names.count("large") * 900 - names.count("small") * 100) <= 1000


def test_a_tenant_may_be_worth_more() -> None:
    queue = queue_of(*(flight("a") for _ in range(40)), *(flight("b") for _ in range(40)), shares=(("b", 3.0),))
    assert abs(served(queue, 40).count("b") - 30) <= 1


def test_who_comes_after_a_pause_has_saved_nothing_up() -> None:
    queue = queue_of(*(flight("busy") for _ in range(60)))
    served(queue, 30)
    for _ in range(30):
        queue.add(flight("back"), 1.0)
    assert abs(served(queue, 20).count("back") - 10) <= 1


def test_the_order_shown_is_the_order_served() -> None:
    flights = [flight(f"t{i % 3}", 50 + 37 * (i % 5), due=float(i % 7)) for i in range(30)]
    queue = queue_of(*flights)
    shown = list(queue.flights())
    assert len(shown) == len(set(map(id, shown))) == 30
    for each in shown:
        assert next(queue.flights()) is each
        queue.serve(each, each.num_tokens, 0.0)
    assert len(queue) == 0 and queue.num_tokens == 0


def test_who_is_late_lets_those_pass_that_can_still_be_in_time_but_not_for_ever() -> None:
    late, soon, later = flight(due=1.0), flight(due=3.0), flight(due=1.0 + LATE_S + 0.5)
    queue = queue_of(late, soon, later)
    queue.make_late(2.0)
    assert list(queue.flights()) == [soon, late, later]
    assert late.is_late and not soon.is_late
    queue.make_late(2.5)
    assert list(queue.flights()) == [soon, late, later], "it is late once"


def test_tokens_before_a_new_one_are_those_of_fair_turns() -> None:
    queue = queue_of(*(flight("greedy", 100) for _ in range(90)), flight("high", 500, priority=2))
    assert queue.tokens_before(flight("small", 200)) == 500 + 200, "no more of the other than it wants itself"
    assert queue.tokens_before(flight("greedy", 200)) == 500 + 9000
    assert queue.tokens_before(flight("offline", 10, priority=-1)) == 500 + 9000
    assert queue.tokens_before(flight("high", 10, priority=2)) == 500


def test_accounts_of_tenants_that_wait_for_nothing_are_few() -> None:
    queue = queue_of(flight("always"), flight("always"))
    for i in range(4 * MAX_IDLE):
        each = flight(f"tenant {i}")
        queue.add(each, 1.0)
        queue.serve(each, 100, 0.0)
    queue.make_late(0.0)
    assert len(queue._classes[0].tenants) <= MAX_IDLE + 1
    for each in list(queue.flights()):
        queue.remove(each)
    queue.make_late(0.0)
    assert not queue._classes


def test_how_fast_the_line_moves_is_measured_while_somebody_waits() -> None:
    queue = queue_of(*(flight() for _ in range(20)))
    for i in range(10):
        queue.serve(next(queue.flights()), 100, i * 0.1)
    assert queue.starts_per_s(1.0) == 10.0
    assert queue.starts_per_s(5.0) == 2.0, "it has stood since"
    assert WaitingQueue().starts_per_s(1.0) is None
