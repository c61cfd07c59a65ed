"""A small simulated cluster for walks: no chance but its seed, every event on record, and a hand to break things."""

from collections.abc import Callable
from dataclasses import replace

from cluster.simulated.checks import check_end
from cluster.simulated.costs import Costs
from cluster.simulated.door import Answer
from cluster.simulated.host import Host
from cluster.simulated.scenario import Arrival, NodePlan, Scenario, make_request
from cluster.simulated.world import World
from core.events import Event, Tick
from core.ids import Address, AttemptId, GatewayId, NodeId, RequestId, attempt_id, node_name

GATEWAY = GatewayId("gateway-0")
CALM_S = 40.0


class Stage:
    """One run, stepped by hand.

    Owns: the world, and the record of all events but ticks, as (where, event).
    """

    def __init__(self, *nodes: NodePlan, overcommit: bool = False, fenced_transport: bool = False) -> None:
        scenario = Scenario(
            1,
            nodes,
            (),
            costs=Costs(jitter=0.0),
            overcommit=overcommit,
            fenced_transport=fenced_transport,
            by_hand=True,
        )
        self.world = World(scenario)
        self.record: list[tuple[Address, Event]] = []
        self._reactions: list[Callable[[Address, Event], None]] = []
        self.world.watch.after = self._note

    def ask(
        self,
        name: str,
        num_prompt_tokens: int,
        max_tokens: int,
        *,
        first_token: int = 1,
        tpot_s: float = 0.1,
        choice: int = 0,
    ) -> RequestId:
        """A client sends a request of its own content (or of another's, by the same `first_token`)."""
        token_ids = [(first_token * 7 + i) % 60 + 1 for i in range(num_prompt_tokens)]
        request = make_request(name, token_ids, max_tokens, seed=3, tpot_s=tpot_s, ignore_eos=True)
        request = replace(request, sampling=replace(request.sampling, choice=choice))
        self.world.doors[GATEWAY].arrive(Arrival(self.world.loop.now, GATEWAY, request))
        return request.id

    def once(self, kind: type[Event], react: Callable[[Address], None], *, times: int = 1) -> None:
        """When an event of this kind has been taken for the `times`-th time, do something, once."""
        left = times

        def reaction(address: Address, event: Event) -> None:
            nonlocal left
            if isinstance(event, kind):
                left -= 1
                if left == 0:
                    react(address)

        self._reactions.append(reaction)

    def until(self, condition: Callable[[], bool], limit: int = 20_000) -> None:
        """Make calls until something is so."""
        for _ in range(limit):
            if condition():
                return
            self.world.loop.step()
        raise AssertionError(f"it never came to that; events so far: {self.path()}")

    def end(self) -> None:
        """Run until all is quiet; then nothing may be left, and every answer is right."""
        self.world.run_until_quiet(CALM_S)
        check_end(self.world)

    def host(self, name: str) -> Host:
        """The node of this name whose process runs."""
        return next(host for host in self.world.alive() if node_name(host.node) == name)

    def answer(self, request: RequestId) -> Answer:
        """What the client of a request has got."""
        return self.world.doors[GATEWAY].answers[request]

    def num_cached(self, request: RequestId) -> int:
        """How many of a request's prompt tokens were found, as its client is told."""
        ended = self.answer(request).ended
        assert ended is not None and ended.timing is not None, f"{request} has no ledger"
        return ended.timing.num_cached_tokens

    def num_seen(self, kind: type[Event]) -> int:
        """How many events of a kind were taken."""
        return sum(isinstance(event, kind) for _, event in self.record)

    def path(self) -> list[str]:
        """All events on record, as `Kind at place`."""
        return [f"{type(event).__name__} at {node_name(NodeId(where))}" for where, event in self.record]

    def first_of(self, request: RequestId) -> AttemptId:
        """The name of a request's first attempt on record."""
        for _, event in self.record:
            attempt = getattr(event, "attempt", None)
            if attempt is not None and attempt.startswith(f"{request}#"):
                return AttemptId(attempt)
        return attempt_id(request, 0)

    def _note(self, address: Address, event: Event) -> None:
        if isinstance(event, Tick):
            return
        self.record.append((address, event))
        for reaction in tuple(self._reactions):
            reaction(address, event)


def prefill_node(name: str = "p", num_blocks: int = 16, tokens_per_step: int = 32) -> NodePlan:
    """A node that prefills only."""
    return NodePlan(name, "prefill", num_blocks, tokens_per_step)


def decode_node(name: str = "d", num_blocks: int = 16, max_rows: int = 8) -> NodePlan:
    """A node that decodes only."""
    return NodePlan(name, "decode", num_blocks, 8, max_rows)


def appear_in_order(path: list[str], steps: list[str]) -> bool:
    """Whether all `steps` are in `path`, in this order, with anything between them."""
    rest = iter(path)
    return all(step in rest for step in steps)
