"""Under chaos the machines make only the moves that `core/lifecycle.py` allows, and come through every state."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.node import Node
from cluster.simulated.chaos import run_batch
from core import events
from core.ids import request_of
from core.lifecycle import DECODE, PREFILL, REQUEST, State, Table, moves
from scheduler.scheduler import Scheduler

pytestmark = pytest.mark.slow

NUM_SEEDS = 25
FOR_ALL = (
    events.StepDone,
    events.StepFailed,
    events.PeerLost,
    events.MixChanged,
    events.NodeJoined,
    events.NodeLost,
    events.StatsReported,
    events.Overridden,
    events.Tick,
    events.DrainAsked,
)


@dataclass
class Watch:
    """What was seen: states per table, and moves that no row allows."""

    seen: set[tuple[str, State]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def compare(self, table: Table, before: dict[str, State], after: dict[str, State], event: Any) -> None:
        """Holds every move of one event against the table; who is in neither stands at the start."""
        told = names_of(event)
        for name in before.keys() | after.keys():
            old, new = before.get(name, table.start), after.get(name, table.start)
            self.seen |= {(table.title, old), (table.title, new)}
            said = event if told is None or name in told else None
            if new not in moves(table, old, said):
                self.wrong.append(f"{table.title}: {old} -> {new} on {said}")


def names_of(event: Any) -> set[str] | None:
    """The attempts and requests that an event speaks of; None where it speaks of all."""
    match event:
        case events.LeasesRenewed(attempts=attempts):
            return set(attempts)
        case events.RequestArrived(request=request):
            return {request.id}
        case _ if isinstance(event, FOR_ALL):
            return None
    attempt = getattr(event, "attempt", None)
    return {attempt, request_of(attempt)} if attempt else {event.request}


def states(names: Iterable[str], state_of: Callable[[Any], State]) -> dict[str, State]:
    """The states of those that are not gone."""
    return {name: state_of(name) for name in names}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Looks at every machine before and after each event."""
    found, node_handle, scheduler_handle = Watch(), Node.handle, Scheduler.handle

    def watched_node(self: Node, event: Any, now: float) -> Any:
        machines = ((PREFILL, self.prefill), (DECODE, self.decode))
        before = [states(machine.attempts, machine.state_of) for _, machine in machines]
        commands = node_handle(self, event, now)
        for (table, machine), earlier in zip(machines, before, strict=True):
            found.compare(table, earlier, states(machine.attempts, machine.state_of), event)
        return commands

    requests: set[str] = set()

    def watched_scheduler(self: Scheduler, event: Any, now: float) -> Any:
        requests.update(names_of(event) or ())
        before = states(requests, self.state_of)
        commands = scheduler_handle(self, event, now)
        after = states(requests, self.state_of)
        found.compare(REQUEST, before, after, event)
        requests.difference_update(name for name, state in after.items() if state is REQUEST.start)
        return commands

    monkeypatch.setattr(Node, "handle", watched_node)
    monkeypatch.setattr(Scheduler, "handle", watched_scheduler)
    return found


def test_under_chaos_every_move_of_a_machine_is_one_that_its_table_allows(watch: Watch) -> None:
    assert run_batch(0, NUM_SEEDS).failures == {}
    assert watch.wrong == []
    assert watch.seen >= {(table.title, state) for table in (REQUEST, PREFILL, DECODE) for state in table.states}
