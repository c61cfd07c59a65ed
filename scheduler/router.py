"""Requests on their way to a route: what they need, whether they are let in, whose turn it is, and what is booked."""

from collections.abc import Mapping, Sequence
from math import inf

from core.commands import Command, Tell
from core.errors import ErrorInfo
from core.events import StreamEnded, Submitted
from core.goodput import Outcome
from core.ids import NodeId, RequestId, request_of
from core.kv import num_blocks
from core.lifecycle import RequestState
from scheduler.admission import outlook, refusal_at_the_door, unattainable, whole_blocks
from scheduler.config import SchedulerConfig
from scheduler.demand import Demand, Refusal, Route
from scheduler.flight import Flight
from scheduler.policies.policy import Policy
from scheduler.prefix_index import stride_of, strided
from scheduler.progress import Progress
from scheduler.queue import WaitingQueue
from scheduler.view import Booking, ClusterView

LOOKS_EVERY_S = 0.5
"""How often it is looked how far answers are."""


class Router:
    """Routes what waits.

    Owns: the queue of those that wait, who of the offline class was asked to give way since somebody looked, and when
    it is next looked how far answers are.
    """

    def __init__(
        self, config: SchedulerConfig, view: ClusterView, policy: Policy, flights: Mapping[RequestId, Flight]
    ) -> None:
        self._config = config
        self._view = view
        self._policy = policy
        self._flights = flights
        self._giving_way: list[Flight] = []
        self._progress, self._looks_at = Progress(), -inf
        self.queue = WaitingQueue(config.tenant_shares)

    # ── in and out ───────────────────────────────────────────────────────────────────────────────────────────────────

    def refusal(self, flight: Flight, finished_at: Sequence[float], now: float) -> ErrorInfo | None:
        """Why a new request is turned away; None where it may wait for its turn."""
        refusal = refusal_at_the_door(flight, self.queue, self._view, self._config, finished_at)
        if refusal is not None or not self._config.refuses_unattainable:
            return refusal
        demand = self.demand(flight, now)
        seen = outlook(flight, demand, self.queue, self._view, now)
        flight.ttft_s = seen.ttft_s
        return unattainable(flight.request, demand, seen, self._view)

    def add(self, flight: Flight) -> None:
        """It waits from now on, in the place that its class, its tenant and its age give it."""
        self.queue.add(flight, flight.arrived_at + self._first_due_s(flight))

    def remove(self, flight: Flight) -> None:
        """It waits no more, and has no route."""
        self.queue.remove(flight)

    def tick(self, now: float) -> None:
        """Who is late lets others go first; errors of another time are forgotten."""
        self.queue.make_late(now)
        self._view.predictor.forget(now)
        if now >= self._looks_at:
            self._looks_at = now + LOOKS_EVERY_S
            self._view.lengths.note_going(self._progress.answers(self._flights.values(), self._view))

    # ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def route_waiting(self, now: float) -> list[Command]:
        """Route in order; look a bounded way past a blocked request, and not past one that was overtaken too often.

        Nor past one that waits for what those behind it would take from it, but where it is late already. While anybody
        else is blocked, nobody of the offline class gets a route.
        """
        if not len(self.queue):
            return []
        commands: list[Command] = []
        blocked: list[Flight] = []
        largest = self._view.largest_request_blocks
        for flight in self.queue.flights():
            if flight.not_before > now or whole_blocks(flight, self._view) > largest:
                continue  # in no one's way: it waits for its own time, or for a node that can take it
            if flight.request.is_offline and blocked and not blocked[0].request.is_offline:
                break
            demand = self.demand(flight, now)
            answer = self._policy.route(demand, self._view, now)
            if isinstance(answer, Refusal):
                blocked.append(flight)
                self._ask_for_room(demand)
                if self._stands_in_the_way(flight, answer) or len(blocked) > self._config.max_overtaking:
                    break
                continue
            commands.append(self._start(flight, demand, answer, now))
            for overtaken in blocked:
                overtaken.num_skipped += 1
        return commands

    def _stands_in_the_way(self, flight: Flight, refusal: Refusal) -> bool:
        in_line = refusal.code == "in_line" and not flight.is_late
        return in_line or flight.num_skipped >= self._config.max_skips

    def demand(self, flight: Flight, now: float) -> Demand:
        """What it needs, with the growth that answers of its kind have; all that is left after two preemptions."""
        request, lengths, left = flight.request, self._view.lengths, flight.num_left
        output = float(self._config.expected_output_tokens)
        if self._config.learns_lengths and lengths.num_seen:
            output = lengths.expected_output(request.tenant, request.priority)
        output = max(1.0, min(left, output))
        growth = left if flight.num_preemptions >= 2 else int(output)
        block_size = self._view.block_size
        return Demand(
            request,
            flight.num_tokens,
            num_blocks(flight.num_tokens, block_size),
            num_blocks(flight.num_tokens + growth, block_size),
            decodes=left > 1,
            avoid=flight.avoid,
            prompt=flight.shared_prompt,
            prefixes=() if request.sampling.prompt_logprobs is not None else self._prefixes(flight),
            stride_tokens=stride_of(block_size) * block_size,
            waited_s=now - flight.arrived_at,
            output_tokens=output,
        )

    def _prefixes(self, flight: Flight) -> tuple[bytes, ...]:
        return strided(flight.request.prompt.block_keys, self._view.block_size)

    def _first_due_s(self, flight: Flight) -> float:
        """From its arrival to when its first token is due."""
        slo = flight.request.slo
        return slo.ttft_s if slo is not None else self._config.due_s

    def _start(self, flight: Flight, demand: Demand, route: Route, now: float) -> Tell:
        """Book slot and credit together, and submit."""
        view, request = self._view, flight.request
        prefill, decode = view.nodes[route.prefill], view.nodes[route.decode]
        pair = route.pair or view.predictor.pair(demand, prefill, decode, now)
        self.queue.serve(flight, demand.prefill_tokens + demand.output_tokens, now)
        flight.state, flight.unheld_since, flight.num_skipped = RequestState.ROUTED, None, 0
        flight.route = Route(route.prefill, route.decode)
        ttft_s = demand.waited_s + pair.ttft_s if flight.ttft_s is None else flight.ttft_s
        flight.expected = view.predictor.expect(demand, pair, ttft_s)
        attempt = flight.mint_attempt()
        is_new = demand.prompt not in prefill.prompts
        tokens, pairs = (pair.num_tokens, pair.pairs) if is_new else (0, 0.0)
        row = _row_of(demand)
        if prefill is decode:
            blocks = demand.decode_blocks if demand.decodes else demand.prefill_blocks
            booking = Booking(blocks, tokens, int(demand.decodes), demand.prompt, pairs, *row)
            view.book(attempt, route.prefill, booking, now)
        else:
            booking = Booking(demand.prefill_blocks, tokens, 0, demand.prompt, pairs, is_offline=request.is_offline)
            view.book(attempt, route.prefill, booking, now)
            view.book(attempt, route.decode, Booking(demand.decode_blocks, 0, 1, b"", 0.0, *row), now)
            view.predictor.book_handoff(demand, pair, now)
            view.prefixes.add(route.decode, demand.prefixes)
        view.prefixes.add(route.prefill, demand.prefixes)
        due_s = self._first_due_s(flight) - demand.waited_s
        submitted = Submitted(
            attempt, request, flight.log, flight.gateway, route.decode, demand.waited_s, flight.num_preemptions, due_s
        )
        return Tell(route.prefill, submitted)

    # ── the offline class gives way ──────────────────────────────────────────────────────────────────────────────────

    def take_giving_way(self) -> list[Flight]:
        """Requests of the offline class whose attempts are to be given up for others, once."""
        giving_way, self._giving_way = self._giving_way, []
        return giving_way

    def _ask_for_room(self, demand: Demand) -> None:
        """Somebody is blocked: where too little room is left, and the offline class has some, it comes back.

        Of one node only, and no more than it takes; what was asked back before and is not yet there counts.
        """
        if demand.request.is_offline:
            return
        holders = [node for node in self._view.nodes.values() if node.booked_offline]
        needed = max(demand.prefill_blocks, demand.decode_blocks)
        for node in sorted(holders, key=lambda node: (-node.booked_offline, node.node)):
            free, rows = node.num_unbooked, node.num_rows_left
            if not node.mix.accepts_decode or (free >= needed and rows > 0):
                continue
            self._ask_back(node.node, needed - free, 1 - rows)
            return

    def _ask_back(self, node: NodeId, num_blocks: int, num_rows: int) -> None:
        """The youngest first."""
        bookings = [each for each in self._view.nodes[node].bookings.items() if each[1].is_offline]
        for attempt, booking in reversed(bookings):
            if num_blocks <= 0 and num_rows <= 0:
                return
            flight = self._flights.get(request_of(attempt))
            if flight is not None and flight.attempt == attempt and flight not in self._giving_way:
                self._giving_way.append(flight)
            num_blocks -= booking.blocks
            num_rows -= booking.num_rows

    # ── what is learned ──────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, flight: Flight, ended: StreamEnded, now: float) -> None:
        """An answer is complete: its length, and how far off was what was predicted, where one attempt was all.

        What the offline class gets was promised to nobody, so it says nothing.
        """
        if ended.outcome is not Outcome.FINISHED or ended.num_tokens < 1:
            return
        request, expected = flight.request, flight.expected
        self._view.lengths.learn(request.tenant, request.priority, ended.num_tokens)
        if ended.timing is None or expected is None or flight.next_number != 1 or request.is_offline:
            return
        self._view.predictor.learn(expected, ended.timing, ended.num_tokens, now)
        block_size = self._view.block_size
        stride_tokens = stride_of(block_size) * block_size
        if ended.timing.num_cached_tokens + stride_tokens <= expected.hit_tokens:
            gone = self._prefixes(flight)[ended.timing.num_cached_tokens // stride_tokens :]
            self._view.prefixes.forget(expected.prefill, gone)


def _row_of(demand: Demand) -> tuple[int, float, bool]:
    """What a row's booking says of its steps: context, TPOT target, class."""
    slo = demand.request.slo
    context = demand.prefill_tokens + int(demand.output_tokens / 2) if demand.decodes else 0
    return context, slo.tpot_s if slo is not None else inf, demand.request.is_offline
