"""On which nodes requests ran: noted as the scheduler tells nodes of them, for those who show requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.commands import Command, Tell
from core.events import SchedulerEvent, Submitted
from core.ids import NodeId, RequestId, node_name, request_of

MAX_KEPT = 8192
MAX_TAKEN = 1024


class SchedulerMachine(Protocol):
    """The scheduler, or who stands before it."""

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """Takes one event in; the commands are to be carried out in order."""


@dataclass(frozen=True, slots=True)
class RequestNodes:
    """Names of the nodes of a request's last attempt; empty: it was never routed."""

    prefill: str = ""
    decode: str = ""


NOWHERE = RequestNodes()


class RoutesSeen:
    """Hands everything on to the scheduler and back.

    Owns: the nodes of requests that have not been taken, and of the last ones that were. A migration afterwards is not
    noted: `decode` is where the row began.
    """

    def __init__(self, machine: SchedulerMachine) -> None:
        self._machine = machine
        self._nodes: dict[RequestId, RequestNodes] = {}
        self._taken: dict[RequestId, RequestNodes] = {}

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """What the scheduler says."""
        commands = self._machine.handle(event, now)
        for command in commands:
            if isinstance(command, Tell) and isinstance(command.event, Submitted):
                self._note(command.event, NodeId(command.to))
        return commands

    def take(self, request: RequestId) -> RequestNodes:
        """Where a request ran that has ended; only the last ones are kept here from now on."""
        nodes = self._nodes.pop(request, NOWHERE)
        if nodes is not NOWHERE:
            self._taken[request] = nodes
            if len(self._taken) > MAX_TAKEN:
                del self._taken[next(iter(self._taken))]
        return nodes

    def seen(self, request: RequestId) -> RequestNodes:
        """Where a request runs, or ran."""
        return self._nodes.get(request) or self._taken.get(request, NOWHERE)

    def _note(self, submitted: Submitted, prefill: NodeId) -> None:
        nodes = RequestNodes(node_name(prefill), node_name(submitted.decode_node))
        self._nodes[request_of(submitted.attempt)] = nodes
        if len(self._nodes) > MAX_KEPT:
            del self._nodes[next(iter(self._nodes))]
