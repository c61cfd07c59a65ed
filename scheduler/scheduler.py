"""The global scheduler: one decision per request, both nodes at once, and every request's way to its end."""

from collections import deque
from typing import assert_never

from core.commands import Command, Tell
from core.errors import ErrorInfo
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    DrainAsked,
    Dropped,
    MixChanged,
    NodeJoined,
    NodeLost,
    Overridden,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    RequestResumed,
    SchedulerEvent,
    StatsReported,
    Stayed,
    StreamEnded,
    StreamSilent,
    Submitted,
    Tick,
)
from core.goodput import Outcome
from core.ids import AttemptId, NodeId, RequestId, request_of
from core.kv import num_blocks
from core.lifecycle import RequestState
from scheduler.admission import is_hopeless, refusal_at_the_door, whole_blocks
from scheduler.config import SchedulerConfig
from scheduler.flight import Flight, WaitingQueue
from scheduler.mover import Mover
from scheduler.policies.policy import Demand, Policy, Refusal, Route
from scheduler.ratio import next_mixes
from scheduler.view import Booking, ClusterView

MAX_TOMBSTONES = 4096

_HARMLESS = frozenset({AttemptEnd.FINISHED, AttemptEnd.HANDED_OFF, AttemptEnd.DROPPED})
_OF_THE_PAIR = frozenset({AttemptEnd.KV_LOST, AttemptEnd.KV_CORRUPT})
"""Lender, link or reader may be at fault: the next try takes another pair where there is one."""

_ERROR_CODES = {AttemptEnd.KV_CORRUPT: "kv_corrupt", AttemptEnd.STEP_FAILED: "step_failed"}


class Scheduler:
    """Routes, retries and refuses.

    Owns: every request from its arrival to its end, the queue, and (in the view) all credits and mixes.
    Invariant: a request in ROUTED has one current attempt; the next one is made only after the gateway has fenced it.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config = config
        self.view = ClusterView()
        self._policy = policy
        self._flights: dict[RequestId, Flight] = {}
        self._queue = WaitingQueue()
        self.mover = Mover(config, self.view, self._flights)
        self._ending: dict[AttemptId, float] = {}
        self._tombstones: dict[RequestId, float] = {}
        self._finished_at: deque[float] = deque(maxlen=64)
        self.num_dropped_events = 0

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def state_of(self, request: RequestId) -> RequestState:
        """The state of a request; ENDED where it is not known."""
        flight = self._flights.get(request)
        return flight.state if flight else RequestState.ENDED

    @property
    def live_requests(self) -> tuple[RequestId, ...]:
        """Requests that have not ended, oldest first."""
        return tuple(self._flights)

    @property
    def num_waiting(self) -> int:
        """Requests without a route."""
        return len(self._queue)

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._flights)

    def is_idle(self) -> bool:
        """Whether no request is live and all credits are back."""
        return not self._flights and not self.view.num_booked_attempts

    def check(self) -> None:
        """Asserts the invariants."""
        self.view.check()
        waiting = [f for f in self._flights.values() if f.state is RequestState.WAITING]
        queued = self._queue.flights()
        assert len(queued) == len(waiting) and all(f.state is RequestState.WAITING for f in queued), "the queue"
        assert self._queue.num_tokens == sum(f.num_tokens for f in queued), "queued tokens"
        for flight in self._flights.values():
            assert (flight.state is RequestState.ROUTED) == (flight.attempt is not None), f"{flight.request.id}"

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: SchedulerEvent, now: float) -> list[Command]:
        """Take one event; the commands are `Tell` only."""
        commands = self._dispatch(event, now)
        if isinstance(event, StatsReported | StreamSilent):
            return commands  # frees nothing and brings nobody; the next tick routes by what it said
        return commands + self.mover.next_moves(now) + self._route_waiting(now)

    def _dispatch(self, event: SchedulerEvent, now: float) -> list[Command]:
        match event:
            case RequestArrived():
                return self._on_arrived(event, now)
            case AttemptFinished():
                return self._on_attempt_finished(event, now)
            case RequestResumed(request, log):
                return self._on_resumed(request, log, now)
            case StreamEnded(request, outcome):
                return self._on_stream_ended(request, outcome, now)
            case RequestCancelled(request):
                return self._on_cancelled(request, now)
            case StreamSilent(request):
                return self._on_silent(request, now)
            case NodeJoined(node, spec):
                self.view.join(node, spec)
                return self._cover()
            case NodeLost(node, why):
                return self._on_node_lost(node, why, now)
            case Overridden():
                return self._on_overridden(event)
            case DrainAsked(node):
                return self.mover.drain(node, now) + self._cover()
            case Stayed():
                return self._on_stayed(event, now)
            case StatsReported(node, stats):
                self.view.believe(node, stats)
                return []
            case Tick():
                return self._on_tick(now)
            case _:
                assert_never(event)

    def _on_arrived(self, event: RequestArrived, now: float) -> list[Command]:
        flight = Flight(event.request, event.gateway, now, waiting_since=now)
        if flight.request.id in self._flights or flight.request.id in self._tombstones:
            self.num_dropped_events += 1
            return []
        refusal = refusal_at_the_door(flight, self._queue, self.view, self.config, self._finished_at)
        if refusal is not None:
            return [Tell(event.gateway, RequestEnded(event.request.id, Outcome.REFUSED, refusal))]
        self._flights[flight.request.id] = flight
        self._queue.add(flight)
        return []

    def _on_attempt_finished(self, event: AttemptFinished, now: float) -> list[Command]:
        if not self.view.release(event.attempt, event.node):
            self.num_dropped_events += 1
        flight = self._flights.get(request_of(event.attempt))
        if flight is None or flight.attempt != event.attempt:
            return []
        if event.end is AttemptEnd.FINISHED:
            flight.unheld_since = now
        if self.mover.is_lost_by(flight, event):
            return self._lose_with_node(flight, "the one that took the row over", now)
        if event.end in _HARMLESS or self.mover.is_moving_to(flight, event.node):
            return []
        if event.end is AttemptEnd.PREEMPTED:
            flight.num_preemptions += 1
        elif event.end is AttemptEnd.REFUSED:
            flight.num_refusals += 1
            flight.avoid |= {event.node}
        else:
            flight.num_tries += 1
            flight.avoid |= flight.pair if event.end in _OF_THE_PAIR else {event.node}
            code = _ERROR_CODES.get(event.end, "worker_lost")
            flight.error = ErrorInfo(code, f"the last of {flight.num_tries} attempts ended with {event.end.value}")
        return self._lose_attempt(flight, now)

    def _on_stayed(self, event: Stayed, now: float) -> list[Command]:
        commands = self.mover.stayed(event, now)
        self.num_dropped_events += commands is None
        return commands or []

    def _on_resumed(self, request: RequestId, log: bytes, now: float) -> list[Command]:
        flight = self._flights.get(request)
        if flight is None or flight.state is not RequestState.RESUMING:
            self.num_dropped_events += 1
            return []
        flight.log = log
        if flight.num_tries > self.config.max_retries or flight.num_losses > self.config.max_losses:
            return self._end(flight, Outcome.FAILED, flight.error or ErrorInfo("worker_lost", "too many attempts"))
        flight.state = RequestState.WAITING
        flight.waiting_since = now
        flight.not_before = now + flight.pause_s(self.config.retry_backoff_s)
        self._queue.add(flight)
        return []

    def _on_stream_ended(self, request: RequestId, outcome: Outcome, now: float) -> list[Command]:
        """A stream that ended by its nodes' own word needs no `Dropped`: their reports are on the way (see `Tick`)."""
        flight = self._flights.get(request)
        if flight is None:
            self._bury(request, now)
            return []
        attempt = flight.attempt
        self._forget(flight)
        if attempt is not None and self.view.nodes_of(attempt):
            self._ending[attempt] = now
        if outcome is Outcome.FINISHED:
            self._finished_at.append(now)
        return []

    def _on_cancelled(self, request: RequestId, now: float) -> list[Command]:
        flight = self._flights.get(request)
        if flight is None:
            self._bury(request, now)
            return []
        attempt = flight.attempt
        self._forget(flight)
        return self._drop(attempt) if attempt else []

    def _bury(self, request: RequestId, now: float) -> None:
        """Its end may have overtaken its `RequestArrived`, which then must not begin anything."""
        self.num_dropped_events += 1
        if len(self._tombstones) >= MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        self._tombstones[request] = now

    def _on_silent(self, request: RequestId, now: float) -> list[Command]:
        flight = self._flights.get(request)
        if flight is None or flight.state is not RequestState.ROUTED:
            self.num_dropped_events += 1
            return []
        flight.num_tries += 1
        flight.avoid |= frozenset(self.view.nodes_of(flight.attempt)) if flight.attempt else frozenset()
        flight.error = ErrorInfo("worker_lost", "no token came for too long")
        return self._lose_attempt(flight, now)

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_node_lost(self, node: NodeId, why: str, now: float) -> list[Command]:
        if node not in self.view.nodes:
            self.num_dropped_events += 1
            return []
        commands: list[Command] = []
        lost = self.view.lose(node)
        for attempt in lost:
            flight = self._flights.get(request_of(attempt))
            if flight is not None and flight.attempt == attempt and not self.mover.is_moving_to(flight, node):
                commands += self._lose_with_node(flight, why, now)
        return self._cover() + self.mover.end_drain(node, len(lost)) + commands

    def _on_overridden(self, event: Overridden) -> list[Command]:
        commands: list[Command] = []
        for node, mix in zip(event.nodes, event.mixes, strict=True):
            if view := self.view.nodes.get(node):
                view.base_mix = mix
                commands += self.mover.end_drain(node, len(view.bookings))
            else:
                self.num_dropped_events += 1
        return self._cover() + commands

    def _cover(self) -> list[Command]:
        """Tell mixes that changed: a phase that nobody accepts any more is taken over at once."""
        commands: list[Command] = []
        for view, mix in next_mixes(self.view.nodes.values()):
            view.mix = mix
            commands.append(Tell(view.node, MixChanged(mix)))
        return commands

    # ── routing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _route_waiting(self, now: float) -> list[Command]:
        """Route in order; look a bounded way past a blocked request, and not past one that was overtaken too often."""
        commands: list[Command] = []
        blocked: list[Flight] = []
        largest = self.view.largest_request_blocks
        for flight in self._queue.flights():
            if flight.not_before > now or whole_blocks(flight, self.view) > largest:
                continue  # in no one's way: it waits for its own time, or for a node that can take it
            demand = self._demand(flight)
            answer = self._policy.route(demand, self.view, now)
            if isinstance(answer, Refusal):
                blocked.append(flight)
                if len(blocked) > self.config.max_overtaking or flight.num_skipped >= self.config.max_skips:
                    break
                continue
            commands.append(self._start(flight, demand, answer, now))
            for overtaken in blocked:
                overtaken.num_skipped += 1
        return commands

    def _demand(self, flight: Flight) -> Demand:
        growth = flight.num_left
        if flight.num_preemptions < 2:
            growth = min(growth, self.config.expected_output_tokens)
        return Demand(
            flight.request,
            flight.num_tokens,
            self._num_blocks(flight.num_tokens),
            self._num_blocks(flight.num_tokens + growth),
            decodes=flight.num_left > 1,
            avoid=flight.avoid,
            prompt=flight.shared_prompt,
        )

    def _start(self, flight: Flight, demand: Demand, route: Route, now: float) -> Tell:
        """Book slot and credit together, and submit."""
        self._queue.remove(flight)
        flight.state, flight.unheld_since, flight.num_skipped = RequestState.ROUTED, None, 0
        flight.route = route
        attempt = flight.mint_attempt()
        is_new = demand.prompt not in self.view.nodes[route.prefill].prompts
        num_tokens = demand.prefill_tokens if is_new else 0
        if route.prefill == route.decode:
            blocks = demand.decode_blocks if demand.decodes else demand.prefill_blocks
            self.view.book(attempt, route.prefill, Booking(blocks, num_tokens, int(demand.decodes), demand.prompt))
        else:
            self.view.book(attempt, route.prefill, Booking(demand.prefill_blocks, num_tokens, 0, demand.prompt))
            self.view.book(attempt, route.decode, Booking(demand.decode_blocks, 0, 1))
        waited_s = now - flight.arrived_at
        preemptions = flight.num_preemptions
        submitted = Submitted(attempt, flight.request, flight.log, flight.gateway, route.decode, waited_s, preemptions)
        return Tell(route.prefill, submitted)

    # ── losing and ending ────────────────────────────────────────────────────────────────────────────────────────────

    def _lose_with_node(self, flight: Flight, why: str, now: float) -> list[Command]:
        flight.num_losses += 1
        flight.error = ErrorInfo("worker_lost", f"a node was lost: {why}")
        return self._lose_attempt(flight, now)

    def _lose_attempt(self, flight: Flight, now: float) -> list[Command]:
        """Fence the attempt at the gateway, drop it at the nodes; what follows waits for the gateway's log."""
        attempt = flight.attempt
        assert attempt is not None
        flight.state, flight.attempt, flight.resuming_since, flight.move = RequestState.RESUMING, None, now, None
        return [Tell(flight.gateway, AttemptLost(attempt)), *self._drop(attempt)]

    def _drop(self, attempt: AttemptId) -> list[Command]:
        return [Tell(node, Dropped(attempt)) for node in self.view.nodes_of(attempt)]

    def _end(self, flight: Flight, outcome: Outcome, error: ErrorInfo) -> list[Command]:
        attempt = flight.attempt
        self._forget(flight)
        ended = Tell(flight.gateway, RequestEnded(flight.request.id, outcome, error))
        return [ended, *(self._drop(attempt) if attempt else [])]

    def _forget(self, flight: Flight) -> None:
        if flight.state is RequestState.WAITING:
            self._queue.remove(flight)
        flight.state, flight.attempt = RequestState.ENDED, None
        del self._flights[flight.request.id]

    def _on_tick(self, now: float) -> list[Command]:
        commands = self.mover.rebalance(now)
        for flight in list(self._flights.values()):
            commands += self._reap(flight, now)
        for attempt in [a for a, at in self._ending.items() if now - at >= self.config.timers.tick_s]:
            del self._ending[attempt]
            commands += self._drop(attempt)
        lease_s = self.config.timers.lease_s
        self._tombstones = {request: at for request, at in self._tombstones.items() if now - at <= lease_s}
        return commands

    def _reap(self, flight: Flight, now: float) -> list[Command]:
        timers = self.config.timers
        if now - flight.arrived_at > flight.request.deadline_s:
            text = f"the deadline of {flight.request.deadline_s:.3g} s has passed"
            return self._end(flight, Outcome.EXPIRED, ErrorInfo("deadline_exceeded", text))
        if flight.state is RequestState.RESUMING and now - flight.resuming_since > timers.resume_s:
            return self._end(flight, Outcome.FAILED, ErrorInfo("worker_lost", "the gateway did not answer"))
        if flight.state is RequestState.WAITING and is_hopeless(flight, self.view, self.config, now):
            error = flight.error or ErrorInfo("unavailable", "no node can take it now", timers.dead_s)
            return self._end(flight, Outcome.FAILED, error)
        if flight.state is RequestState.ROUTED and self._is_forgotten(flight, now):
            return self._lose_with_node(flight, "its last tokens were lost with it", now)
        return []

    def _is_forgotten(self, flight: Flight, now: float) -> bool:
        """Whether a node called it complete or none has it any more, and for too long no end came from the gateway.

        A node's report may survive the node, and the tokens that it sent before may not.
        """
        assert flight.attempt is not None
        if flight.unheld_since is None and not self.view.nodes_of(flight.attempt):
            flight.unheld_since = now
        return flight.unheld_since is not None and now - flight.unheld_since > self.config.timers.silence_s

    def _num_blocks(self, num_tokens: int) -> int:
        return num_blocks(num_tokens, self.view.block_size)
