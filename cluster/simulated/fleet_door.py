"""The gateway of a simulated fleet: the real `Streams` machine, and an account of what every client got."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.gateway.streams import Delivered, Ended, StreamOutput, Streams
from cluster.simulated.loop import Loop
from cluster.workload.gaps import class_of
from cluster.workload.items import WorkItem
from cluster.workload.served import ServedRequest
from core.commands import Tell
from core.events import GatewayEvent, Tick
from core.goodput import Outcome
from core.ids import Address, GatewayId, RequestId
from core.request import SLO, Request
from core.stats import Timing
from core.timers import Timers


@dataclass(slots=True)
class Client:
    """What one client asked, and what it has got so far."""

    item: WorkItem
    slo: SLO
    opened_at: float
    num_tokens: int = 0
    first_at: float | None = None
    last_at: float = 0.0
    gaps: Counter[int] = field(default_factory=Counter)
    outcome: Outcome | None = None
    code: str = ""
    timing: Timing | None = None

    def extend(self, num_tokens: int, now: float) -> None:
        """Tokens arrive. Several at once were made one after the other: the time since the last is all of theirs."""
        self.num_tokens += num_tokens
        if self.first_at is None:
            self.first_at = now
            num_tokens -= 1
        if num_tokens:
            self.gaps[class_of((now - self.last_at) / num_tokens)] += num_tokens
        self.last_at = now

    def served(self) -> ServedRequest:
        """For the report."""
        assert self.outcome is not None
        is_begun = self.first_at is not None
        return ServedRequest(
            self.item,
            self.slo,
            self.outcome,
            self.num_tokens,
            self.first_at - self.opened_at if self.first_at is not None else None,
            self.last_at - self.opened_at if is_begun else None,
            self.gaps,
            self.timing,
            self.timing.num_cached_tokens if self.timing else 0,
        )


class FleetDoor:
    """A gateway's shell in virtual time.

    Owns: its streams machine, and the clients. `num_ended` of them have ended, the last at `last_end_at`.
    """

    def __init__(self, timers: Timers, loop: Loop, send: Callable[[Address, Address, object], None]) -> None:
        self.gateway = GatewayId("gateway")
        self.streams = Streams(self.gateway, timers, bunches=True)
        self.clients: dict[RequestId, Client] = {}
        self.num_ended = 0
        self.last_end_at = 0.0
        self._loop = loop
        self._send = send
        loop.after(timers.tick_s * loop.chance.random(), self._tick, timers.tick_s)

    def arrive(self, item: WorkItem, request: Request, slo: SLO) -> None:
        """A client sends its request."""
        self.clients[request.id] = Client(item, slo, self._loop.now)
        self._do(self.streams.open(request, self._loop.now))

    def turn_away(self, item: WorkItem, request: RequestId, slo: SLO) -> None:
        """A request that the model cannot take is refused before the scheduler hears of it."""
        client = self.clients[request] = Client(item, slo, self._loop.now)
        self._end(client, Outcome.REFUSED, "too_long", None)

    def take(self, event: GatewayEvent) -> None:
        """Hand an event to the machine and carry out what it asks for."""
        self._do(self.streams.handle(event, self._loop.now))

    def _tick(self, tick_s: float) -> None:
        self._do(self.streams.handle(Tick(), self._loop.now))
        self._loop.after(tick_s, self._tick, tick_s)

    def _do(self, outputs: list[StreamOutput]) -> None:
        now, clients = self._loop.now, self.clients
        for output in outputs:
            if isinstance(output, Delivered):
                clients[output.request].extend(len(output.token_ids), now)
            elif isinstance(output, Tell):
                self._send(self.gateway, output.to, output.event)
            else:
                self._on_ended(output)

    def _on_ended(self, ended: Ended) -> None:
        client = self.clients[ended.request]
        assert ended.num_tokens == client.num_tokens, f"{ended} after {client.num_tokens} tokens"
        if ended.outcome is Outcome.FINISHED:
            assert client.num_tokens == client.item.output_tokens, f"{ended} of {client.item}"
        self._end(client, ended.outcome, ended.error.code if ended.error else "", ended.timing)

    def _end(self, client: Client, outcome: Outcome, code: str, timing: Timing | None) -> None:
        assert client.outcome is None, f"a second end of {client.item}"
        client.outcome, client.code, client.timing = outcome, code, timing
        self.num_ended += 1
        self.last_end_at = self._loop.now
