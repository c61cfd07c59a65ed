"""The scheduler moves rows, events in and commands compared: away from nodes that drain, and to even out the load."""

from dataclasses import replace

import pytest

from core.commands import Command, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    DrainAsked,
    Drained,
    Dropped,
    MigrateAsked,
    MixChanged,
    NodeJoined,
    NodeLost,
    Overridden,
    RequestArrived,
    Stayed,
    Submitted,
    Tick,
)
from core.ids import OPERATOR, AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.lifecycle import RequestState
from core.mix import NodeSpec, mix_of
from core.request import Prompt, Request, SamplingParams
from scheduler.config import SchedulerConfig
from scheduler.moves import Move, proposed_moves
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.scheduler import Scheduler
from scheduler.view import Booking, ClusterView

G, P, D, E = GatewayId("g"), NodeId("p"), NodeId("d"), NodeId("e")
KV = KVLayout(1, 1, 1, 4, "float32")
ROLES = {P: "prefill", D: "decode", E: "decode"}


class Bench:
    """A scheduler, checked after each event. It knows P and D; E joins later, so that all rows are at D before."""

    def __init__(self, config: SchedulerConfig = SchedulerConfig()) -> None:  # noqa: B008 - frozen
        self.scheduler = Scheduler(config, LeastLoaded())
        self.now = 0.0
        self.join(P)
        self.join(D)

    def handle(self, event: object, after_s: float = 0.01) -> list[Command]:
        """One event."""
        self.now += after_s
        commands = self.scheduler.handle(event, self.now)  # type: ignore[arg-type]
        self.scheduler.check()
        return commands

    def join(self, node: NodeId, num_blocks: int = 100, layout: str = "l", max_rows: int = 8) -> list[Command]:
        """A node comes."""
        spec = NodeSpec(LayoutId(layout), KV, num_blocks, 4096, mix_of(ROLES[node], 16, max_rows))
        return self.handle(NodeJoined(node, spec))

    def decoding(self, name: str, max_tokens: int = 8) -> AttemptId:
        """A request whose row decodes at D; its prefill is over."""
        request = Request(RequestId(name), Prompt(8), b"\0\0\0\0" * 8, SamplingParams(max_tokens))
        (submitted,) = events(self.handle(RequestArrived(request, G)), Submitted)
        assert isinstance(submitted, Submitted)
        assert submitted.decode_node == D
        self.handle(AttemptFinished(submitted.attempt, P, AttemptEnd.HANDED_OFF))
        return submitted.attempt

    def draining(self) -> AttemptId:
        """A row on its way from D, which drains, to E."""
        row = self.decoding("r")
        self.join(E)
        assert events(self.handle(DrainAsked(D)), MigrateAsked) == [MigrateAsked(row, E)]
        return row

    def nodes_of(self, attempt: AttemptId) -> tuple[NodeId, ...]:
        """Where it has something booked."""
        return self.scheduler.view.nodes_of(attempt)


def events(commands: list[Command], kind: type) -> list[object]:
    """What is told of a kind."""
    return [command.event for command in commands if isinstance(command, Tell) and isinstance(command.event, kind)]


def test_a_node_that_drains_is_closed_and_its_rows_are_booked_elsewhere_before_they_are_asked_to_go() -> None:
    bench = Bench()
    row = bench.decoding("r")
    bench.join(E)
    commands = bench.handle(DrainAsked(D))
    (mix,) = events(commands, MixChanged)
    assert isinstance(mix, MixChanged)
    assert mix.mix.role == "closed"
    assert events(commands, MigrateAsked) == [MigrateAsked(row, E)]
    assert bench.nodes_of(row) == (D, E)
    view = bench.scheduler.view
    assert view.nodes[E].bookings[row].blocks == view.nodes[D].bookings[row].blocks


def test_a_row_that_has_moved_is_at_the_other_node_and_the_first_is_reported_empty() -> None:
    bench = Bench()
    row = bench.draining()
    commands = bench.handle(AttemptFinished(row, D, AttemptEnd.HANDED_OFF))
    assert commands == [Tell(OPERATOR, Drained(D, 0))]
    assert bench.nodes_of(row) == (E,)
    lost = bench.handle(AttemptFinished(row, E, AttemptEnd.STEP_FAILED))
    assert events(lost, AttemptLost) == [AttemptLost(row)]


def test_a_row_that_was_not_offered_gives_its_promise_back_and_is_asked_again_a_tick_later() -> None:
    bench = Bench()
    row = bench.draining()
    assert bench.handle(Stayed(row, D, was_offered=False)) == []
    assert bench.nodes_of(row) == (D,)
    assert events(bench.handle(Tick()), MigrateAsked) == []
    assert events(bench.handle(Tick(), 1.0), MigrateAsked) == [MigrateAsked(row, E)]


def test_a_row_that_was_offered_and_stayed_is_taken_from_the_other_node_and_not_sent_there_again() -> None:
    bench = Bench()
    row = bench.draining()
    assert bench.handle(Stayed(row, D, was_offered=True)) == [Tell(E, Dropped(row))]
    bench.handle(AttemptFinished(row, E, AttemptEnd.DROPPED))
    assert bench.nodes_of(row) == (D,)
    assert bench.scheduler.state_of(RequestId("r")) is RequestState.ROUTED
    assert events(bench.handle(Tick(), 1.0), MigrateAsked) == []


@pytest.mark.parametrize("end", [AttemptEnd.REFUSED, AttemptEnd.KV_LOST, AttemptEnd.KV_CORRUPT])
def test_what_fails_where_a_row_should_go_is_no_loss_while_the_row_may_be_where_it_was(end: AttemptEnd) -> None:
    bench = Bench()
    row = bench.draining()
    assert bench.handle(AttemptFinished(row, E, end)) == []
    assert bench.handle(Stayed(row, D, was_offered=True)) == []
    assert bench.nodes_of(row) == (D,)
    assert bench.scheduler.state_of(RequestId("r")) is RequestState.ROUTED


def test_a_row_that_was_handed_to_a_node_that_lost_it_begins_anew() -> None:
    bench = Bench()
    row = bench.draining()
    bench.handle(AttemptFinished(row, E, AttemptEnd.KV_LOST))
    commands = bench.handle(AttemptFinished(row, D, AttemptEnd.HANDED_OFF))
    assert events(commands, AttemptLost) == [AttemptLost(row)]
    assert bench.scheduler.state_of(RequestId("r")) is RequestState.RESUMING


def test_an_answer_that_ends_at_the_other_node_before_the_first_has_reported_is_complete() -> None:
    bench = Bench()
    row = bench.draining()
    bench.handle(AttemptFinished(row, E, AttemptEnd.FINISHED))
    assert events(bench.handle(AttemptFinished(row, D, AttemptEnd.HANDED_OFF)), AttemptLost) == []


def test_the_death_of_where_a_row_should_go_waits_for_the_word_of_where_it_was() -> None:
    bench = Bench()
    row = bench.draining()
    assert events(bench.handle(NodeLost(E, "gone")), AttemptLost) == []
    assert bench.handle(Stayed(row, D, was_offered=True)) == []
    assert bench.scheduler.state_of(RequestId("r")) is RequestState.ROUTED
    assert bench.scheduler.num_dropped_events == 0


def test_the_death_of_where_a_row_was_loses_it() -> None:
    bench = Bench()
    row = bench.draining()
    commands = bench.handle(NodeLost(D, "gone"))
    assert events(commands, AttemptLost) == [AttemptLost(row)]
    assert events(commands, Dropped) == [Dropped(row)]
    assert events(commands, Drained) == [Drained(D, 1)]


def test_only_a_few_rows_leave_a_node_at_a_time() -> None:
    bench = Bench()
    rows = [bench.decoding(f"r{i}") for i in range(7)]
    bench.join(E)
    asked = events(bench.handle(DrainAsked(D)), MigrateAsked)
    assert asked == [MigrateAsked(row, E) for row in rows[:4]]
    assert events(bench.handle(Tick(), 1.0), MigrateAsked) == []
    more = bench.handle(AttemptFinished(rows[0], D, AttemptEnd.HANDED_OFF))
    assert events(more, MigrateAsked) == [MigrateAsked(rows[4], E)]


@pytest.mark.parametrize(
    ("num_blocks", "layout", "max_rows"),
    [(3, "l", 8), (100, "other", 8), (100, "l", 0)],
    ids=["small", "other", "full"],
)
def test_where_nobody_can_take_a_row_it_finishes_in_place(num_blocks: int, layout: str, max_rows: int) -> None:
    bench = Bench()
    row = bench.decoding("r")
    bench.join(E, num_blocks, layout, max_rows)
    assert events(bench.handle(DrainAsked(D)), MigrateAsked) == []
    commands = bench.handle(AttemptFinished(row, D, AttemptEnd.FINISHED), 1.0)
    assert events(commands, Drained) == [Drained(D, 0)]


def test_when_the_time_for_a_drain_is_over_what_is_left_is_told_and_goes_on() -> None:
    bench = Bench()
    row = bench.decoding("r")
    bench.join(E, num_blocks=3)
    bench.handle(DrainAsked(D))
    drain_s = bench.scheduler.config.timers.drain_s
    assert events(bench.handle(Tick(), 0.9 * drain_s), Drained) == []
    commands = bench.handle(Tick(), 0.2 * drain_s)
    assert events(commands, Drained) == [Drained(D, 1)]
    assert events(commands, Dropped) == []
    assert bench.nodes_of(row) == (D,)


def test_when_the_last_decode_node_drains_a_survivor_is_widened_and_takes_its_rows() -> None:
    bench = Bench()
    row = bench.decoding("r")
    commands = bench.handle(DrainAsked(D))
    assert [event.mix.role for event in events(commands, MixChanged) if isinstance(event, MixChanged)] == [
        "mixed",
        "closed",
    ]
    assert events(commands, MigrateAsked) == [MigrateAsked(row, P)]


def test_a_new_mix_ends_a_drain() -> None:
    bench = Bench()
    bench.decoding("r")
    bench.handle(DrainAsked(D))
    commands = bench.handle(Overridden((D,), (mix_of("decode", 16, 8),)))
    assert events(commands, Drained) == [Drained(D, 1)]
    bench.join(E)
    assert events(bench.handle(Tick(), 1.0), MigrateAsked) == []


def test_an_unknown_node_is_empty() -> None:
    assert Bench().handle(DrainAsked(E)) == [Tell(OPERATOR, Drained(E, 0))]


# ── evening out ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_not_moved_to_even_out_the_load_unless_somebody_wants_it() -> None:
    for gap, expected in ((None, 0), (0.01, 1)):
        bench = Bench(replace(SchedulerConfig(), rebalance_gap=gap))
        for i in range(3):
            bench.decoding(f"r{i}")
        bench.join(E)
        assert len(events(bench.handle(Tick(), 1.0), MigrateAsked)) == expected


def view_of(d: list[int], e: list[int], layout: str = "l") -> ClusterView:
    """Two decode nodes of 20 blocks with rows of so many blocks."""
    view = ClusterView()
    for node, rows, name in ((D, d, "l"), (E, e, layout)):
        view.join(node, NodeSpec(LayoutId(name), KV, 20, 4096, mix_of("decode", 16, 8)))
        for i, blocks in enumerate(rows):
            view.book(AttemptId(f"{node}{i}#0"), node, Booking(blocks, 0, 1), 0.0)
    return view


def test_moves_are_proposed_until_both_nodes_are_equally_full_and_no_further() -> None:
    moved = [Move(AttemptId(f"d{i}#0"), D, E) for i in (3, 2)]
    assert proposed_moves(view_of([4, 4, 4, 4], []), 0.1, 8) == tuple(moved)
    assert proposed_moves(view_of([4, 4, 4, 4], []), 0.1, 1) == tuple(moved[:1])
    assert proposed_moves(view_of([4, 4], [4]), 0.1, 8) == ()
    assert proposed_moves(view_of([4, 4, 4], [4]), 0.5, 8) == ()
    assert proposed_moves(view_of([4, 4, 4, 4], [], "other"), 0.1, 8) == ()
