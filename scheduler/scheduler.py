"""The global scheduler: one decision per request, both nodes at once, and every request's way to its end."""

from collections import deque
from typing import assert_never

from core.commands import Command, Tell
from core.decisions import OverrideLifted
from core.errors import ErrorInfo
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    DrainAsked,
    Dropped,
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
    Tick,
)
from core.flushing import Flushed
from core.goodput import Outcome
from core.ids import OPERATOR, AttemptId, GatewayId, NodeId, RequestId, request_of
from core.lifecycle import RequestState
from core.membership import GatewayLost
from core.whatif import WhatIfAnswered
from scheduler.admission import is_hopeless
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller
from scheduler.flight import Flight
from scheduler.mover import Mover
from scheduler.policies.policy import Policy
from scheduler.predictor import Predictor
from scheduler.ratio import Ratio
from scheduler.router import Router
from scheduler.view import ClusterView

MAX_TOMBSTONES = 4096

_HARMLESS = frozenset({AttemptEnd.FINISHED, AttemptEnd.HANDED_OFF, AttemptEnd.DROPPED})
_OF_THE_PAIR = frozenset({AttemptEnd.KV_LOST, AttemptEnd.KV_CORRUPT})
"""Lender, link or reader may be at fault: the next try takes another pair where there is one."""

_ERROR_CODES = {AttemptEnd.KV_CORRUPT: "kv_corrupt", AttemptEnd.STEP_FAILED: "step_failed"}


class Scheduler:
    """Routes, retries and refuses.

    Owns: every request from its arrival to its end, and (in the view) all credits and mixes; the queue is the router's.
    Invariant: a request in ROUTED has one current attempt; the next one is made only after the gateway has fenced it.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy, controller: Controller | None = None) -> None:
        self.config = config
        self.view = ClusterView(config)
        self._flights: dict[RequestId, Flight] = {}
        self.router = Router(config, self.view, policy, self._flights)
        self.mover = Mover(config, self.view, self._flights)
        self.ratio = Ratio(config, self.view, self.mover, controller)
        self._ending: dict[AttemptId, float] = {}
        self._tombstones: dict[RequestId, float] = {}
        self._lost_gateways: dict[GatewayId, float] = {}
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

    def requests_of(self, gateway: GatewayId) -> tuple[RequestId, ...]:
        """Those of one gateway that have not ended, oldest first."""
        return tuple(request for request, flight in self._flights.items() if flight.gateway == gateway)

    @property
    def num_waiting(self) -> int:
        """Requests without a route."""
        return len(self.router.queue)

    @property
    def predictor(self) -> Predictor:
        """What predicts, and learns from what became true."""
        return self.view.predictor

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
        queue, queued = self.router.queue, list(self.router.queue.flights())
        assert len(queued) == len(waiting) and all(f.state is RequestState.WAITING for f in queued), "the queue"
        assert queue.num_tokens == sum(f.num_tokens for f in queued), "queued tokens"
        for flight in self._flights.values():
            assert (flight.state is RequestState.ROUTED) == (flight.attempt is not None), f"{flight.request.id}"

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: SchedulerEvent, now: float) -> list[Command]:
        """Take one event; the commands are `Tell` only."""
        self.ratio.observe(event, now)
        commands = self._dispatch(event, now)
        if isinstance(event, StatsReported | StreamSilent):
            return commands  # frees nothing and brings nobody; the next tick routes by what it said
        commands += self.mover.next_moves(now) + self.router.route_waiting(now)
        for flight in self.router.take_giving_way():
            commands += self._give_way(flight, now)
        return commands

    def _dispatch(self, event: SchedulerEvent, now: float) -> list[Command]:
        match event:
            case RequestArrived():
                return self._on_arrived(event, now)
            case AttemptFinished():
                return self._on_attempt_finished(event, now)
            case RequestResumed(request, log):
                return self._on_resumed(request, log, now)
            case StreamEnded():
                return self._on_stream_ended(event, now)
            case RequestCancelled(request):
                return self._on_cancelled(request, now)
            case StreamSilent(request):
                return self._on_silent(request, now)
            case NodeJoined(node, spec):
                self.view.join(node, spec)
                return self.ratio.cover()
            case NodeLost(node, why):
                return self._on_node_lost(node, why, now)
            case GatewayLost(gateway):
                return self._on_gateway_lost(gateway, now)
            case Overridden():
                return self.ratio.override(event, now)
            case OverrideLifted():
                return self.ratio.lift(event, now)
            case WhatIfAnswered():
                return self.ratio.answer(event, now)
            case DrainAsked(node):
                return self.mover.drain(node, now) + self.ratio.cover()
            case Flushed(node):
                self.view.flush(node)
                return [Tell(OPERATOR, event)]
            case Stayed():
                return self._on_stayed(event, now)
            case StatsReported(node, stats):
                self.view.believe(node, stats, now)
                return []
            case Tick():
                return self._on_tick(now)
            case _:
                assert_never(event)

    def _on_arrived(self, event: RequestArrived, now: float) -> list[Command]:
        flight, request = Flight(event.request, event.gateway, now, waiting_since=now), event.request.id
        if request in self._flights or request in self._tombstones or event.gateway in self._lost_gateways:
            self.num_dropped_events += 1
            self.ratio.forgotten(request)
            return []
        refusal = self.router.refusal(flight, self._finished_at, now)
        if refusal is not None:
            self.ratio.turned_away(request)
            return [Tell(event.gateway, RequestEnded(event.request.id, Outcome.REFUSED, refusal))]
        self._flights[flight.request.id] = flight
        self.router.add(flight)
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
        self.router.add(flight)
        return []

    def _on_stream_ended(self, event: StreamEnded, now: float) -> list[Command]:
        """A stream that ended by its nodes' own word needs no `Dropped`: their reports are on the way (see `Tick`)."""
        flight = self._flights.get(event.request)
        if flight is None:
            self._bury(event.request, now)
            return []
        attempt = flight.attempt
        self.router.learn(flight, event, now)
        self._forget(flight)
        if attempt is not None and self.view.nodes_of(attempt):
            self._ending[attempt] = now
        if event.outcome is Outcome.FINISHED:
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
        if flight.request.is_offline:
            return self._give_way(flight, now)  # it was paused for so long that its blocks are better used by others
        flight.num_tries += 1
        flight.avoid |= frozenset(self.view.nodes_of(flight.attempt)) if flight.attempt else frozenset()
        flight.error = ErrorInfo("worker_lost", "no token came for too long")
        return self._lose_attempt(flight, now)

    # ── nodes and gateways ───────────────────────────────────────────────────────────────────────────────────────────

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
        return self.ratio.cover() + self.mover.end_drain(node, len(lost)) + commands

    def _on_gateway_lost(self, gateway: GatewayId, now: float) -> list[Command]:
        """Nobody reads its answers any more. What it sent before may still arrive, and must not begin anything."""
        self._lost_gateways[gateway] = now
        commands: list[Command] = []
        for request in self.requests_of(gateway):
            flight = self._flights[request]
            attempt = flight.attempt
            self._forget(flight)
            commands += self._drop(attempt) if attempt else []
        return commands

    # ── losing and ending ────────────────────────────────────────────────────────────────────────────────────────────

    def _lose_with_node(self, flight: Flight, why: str, now: float) -> list[Command]:
        flight.num_losses += 1
        flight.error = ErrorInfo("worker_lost", f"a node was lost: {why}")
        return self._lose_attempt(flight, now)

    def _give_way(self, flight: Flight, now: float) -> list[Command]:
        """One of the offline class: it comes back to the queue with what it has answered, and counts no try."""
        flight.num_preemptions += 1
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
        self.ratio.turned_away(flight.request.id)
        self._forget(flight)
        ended = Tell(flight.gateway, RequestEnded(flight.request.id, outcome, error))
        return [ended, *(self._drop(attempt) if attempt else [])]

    def _forget(self, flight: Flight) -> None:
        if flight.state is RequestState.WAITING:
            self.router.remove(flight)
        flight.state, flight.attempt = RequestState.ENDED, None
        self.ratio.forgotten(flight.request.id)
        del self._flights[flight.request.id]

    def _on_tick(self, now: float) -> list[Command]:
        self.router.tick(now)
        commands = self.ratio.tick(now) + self.mover.rebalance(now)
        for flight in list(self._flights.values()):
            commands += self._reap(flight, now)
        for attempt in [a for a, at in self._ending.items() if now - at >= self.config.timers.tick_s]:
            del self._ending[attempt]
            commands += self._drop(attempt)
        lease_s = self.config.timers.lease_s
        self._tombstones = {request: at for request, at in self._tombstones.items() if now - at <= lease_s}
        self._lost_gateways = {gateway: at for gateway, at in self._lost_gateways.items() if now - at <= lease_s}
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
