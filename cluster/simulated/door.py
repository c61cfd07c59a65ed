"""One simulated gateway: the real `Streams` machine, and the clients behind it, who know what they should get."""

from dataclasses import dataclass, field

from cluster.gateway.streams import Delivered, Ended, StreamOutput, Streams
from cluster.simulated.links import Links
from cluster.simulated.loop import Loop
from cluster.simulated.scenario import EOS_TOKEN_IDS, Arrival, Fault
from cluster.simulated.watch import Watch
from core.commands import Tell
from core.events import FinishReason, GatewayEvent, RequestResumed, Tick, TokensEmitted
from core.goodput import RequestRecord
from core.ids import AttemptId, GatewayId, RequestId, number_of, request_of
from core.request import unpack_tokens
from core.step import TokenLogprobs
from core.timers import Timers
from engine.fake_truth import reference_tokens, scores_of


@dataclass(slots=True)
class Answer:
    """What one client has got so far, and what it should get. `fence`: attempts up to it may add nothing any more."""

    arrival: Arrival
    right: tuple[int, ...]
    finish: FinishReason
    opened_at: float
    token_ids: list[int] = field(default_factory=list)
    first_at: float | None = None
    last_at: float | None = None
    ended: Ended | None = None
    was_cancelled: bool = False
    has_left: bool = False
    attempt: int = -1
    fence: int = -1
    has_scores: bool = False

    def extend(self, delivered: Delivered, now: float) -> None:
        """Take tokens in; they must be the next ones, and the right ones."""
        name, end = delivered.request, delivered.index + len(delivered.token_ids)
        assert self.ended is None, f"{name}: tokens after its end"
        assert delivered.index == len(self.token_ids), (
            f"{name}: token {delivered.index} after {len(self.token_ids)} tokens"
        )
        right = self.right[delivered.index : end]
        assert delivered.token_ids == right, (
            f"{name}: from token {delivered.index}: {delivered.token_ids}, should be {right}"
        )
        self.token_ids += delivered.token_ids
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now

    def check_scores(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """A token brings its scores where they were asked for, and only there."""
        request = self.arrival.request
        num_top = request.sampling.logprobs
        right = None if num_top is None else scores_of(token_id, num_top)
        assert logprobs == right, f"{request.id}: token {token_id} comes with {logprobs}, should be {right}"

    def check_prompt_scores(self, scores: tuple[TokenLogprobs, ...] | None) -> None:
        """Scores of all prompt tokens but the first, where they come."""
        request = self.arrival.request
        num_top = request.sampling.prompt_logprobs
        if scores is None:
            return
        assert num_top is not None, f"{request.id}: scores of its prompt that nobody wanted"
        right = tuple(scores_of(token_id, num_top) for token_id in unpack_tokens(request.token_ids)[1:])
        assert scores == right, f"{request.id}: {len(scores)} scores of its prompt, should be {len(right)}"
        self.has_scores = True

    def end(self, ended: Ended) -> None:
        """Take the end in; there is one."""
        assert self.ended is None, f"{ended.request}: ends a second time: {ended}"
        assert ended.num_tokens == len(self.token_ids), f"{ended.request}: {ended} after {len(self.token_ids)} tokens"
        self.ended = ended

    def record(self) -> RequestRecord:
        """This answer for the goodput account."""
        assert self.ended is not None, f"{self.arrival.request.id} has not ended"
        ttft_s = None if self.first_at is None else self.first_at - self.opened_at
        last_s = None if self.last_at is None else self.last_at - self.opened_at
        return RequestRecord(self.ended.outcome, ttft_s, last_s, len(self.token_ids))


class Door:
    """A gateway's shell in virtual time.

    Owns: its streams machine, and the answers of its clients.
    """

    def __init__(self, gateway: GatewayId, timers: Timers, loop: Loop, links: Links, watch: Watch) -> None:
        self.gateway = gateway
        self.streams = Streams(gateway, timers)
        self.answers: dict[RequestId, Answer] = {}
        self.is_dead = False
        self._told: set[tuple[AttemptId, int]] = set()
        self._loop = loop
        self._links = links
        self._watch = watch
        loop.after(timers.tick_s * loop.chance.random(), self._tick, timers.tick_s)

    def arrive(self, arrival: Arrival) -> None:
        """A client sends its request."""
        right, finish = reference_tokens(arrival.request, EOS_TOKEN_IDS)
        self.answers[arrival.request.id] = Answer(arrival, right, finish, self._loop.now)
        self._do(self.streams.open(arrival.request, self._loop.now))
        if arrival.leaves_after == 0:
            self._watch.happened(Fault.CANCEL)
            self.cancel(arrival.request.id)

    def cancel(self, request: RequestId) -> None:
        """A client leaves; nothing where its answer is complete."""
        answer = self.answers.get(request)
        if answer is not None and answer.ended is None:
            answer.was_cancelled = True
            self._do(self.streams.cancel(request, self._loop.now))

    def take(self, event: GatewayEvent) -> None:
        """Hand an event to the machine and carry out what it asks for."""
        outputs = self.streams.handle(event, self._loop.now)
        if isinstance(event, TokensEmitted):
            self._check_once(event)
            self._check_fences(event, outputs)
            self._check_scores(event)
        self._do(outputs)
        self._watch.taken(self._loop.now, self.gateway, event)

    def _check_once(self, event: TokensEmitted) -> None:
        """No token is told twice under one attempt's name: its row runs at one node at a time, wherever it goes."""
        for told in zip(event.attempts, event.indices, strict=True):
            assert told not in self._told, f"{told[0]} says token {told[1]} again"
            self._told.add(told)

    def _check_fences(self, event: TokensEmitted, outputs: list[StreamOutput]) -> None:
        """One attempt at most extends a stream: none that the gateway has promised to accept nothing more of."""
        speaker = {request_of(attempt): attempt for attempt in event.attempts}
        for output in outputs:
            if isinstance(output, Delivered):
                attempt, answer = speaker[output.request], self.answers[output.request]
                assert number_of(attempt) > answer.fence, f"{attempt} extends a stream after it was given up"
                answer.attempt = max(answer.attempt, number_of(attempt))
                assert number_of(attempt) == answer.attempt, f"{attempt} extends a stream after a later attempt did"

    def _check_scores(self, event: TokensEmitted) -> None:
        nothing = (None,) * len(event.attempts)
        columns = (event.attempts, event.token_ids, event.logprobs or nothing, event.prompt_logprobs or nothing)
        for attempt, token_id, logprobs, prompt_logprobs in zip(*columns, strict=True):
            answer = self.answers[request_of(attempt)]
            answer.check_scores(token_id, logprobs)
            answer.check_prompt_scores(prompt_logprobs)

    def _check_log(self, resumed: RequestResumed) -> None:
        """What is resumed from is what the client has; the attempt that told it may add nothing any more."""
        answer = self.answers[resumed.request]
        assert unpack_tokens(resumed.log) == tuple(answer.token_ids), (
            f"{resumed.request}: its log is not what was delivered"
        )
        answer.fence = answer.attempt

    def _tick(self, tick_s: float) -> None:
        if self.is_dead:
            return
        self._do(self.streams.handle(Tick(), self._loop.now))
        self._loop.after(tick_s, self._tick, tick_s)

    def _do(self, outputs: list[StreamOutput]) -> None:
        for output in outputs:
            match output:
                case Tell(to, event):
                    if isinstance(event, RequestResumed):
                        self._check_log(event)
                    self._links.send(self.gateway, to, event)
                case Delivered(request):
                    self._watch.trace(self._loop.now, f"{request} {output.token_ids}")
                    self.answers[request].extend(output, self._loop.now)
                case Ended(request):
                    self._watch.trace(
                        self._loop.now, f"{request} {output.outcome} {output.num_tokens} {output.num_attempts}"
                    )
                    self.answers[request].end(output)
        for output in outputs:
            if isinstance(output, Delivered):
                self._leave_when_served(self.answers[output.request])

    def _leave_when_served(self, answer: Answer) -> None:
        leaves_after = answer.arrival.leaves_after
        if leaves_after is not None and len(answer.token_ids) >= leaves_after and answer.ended is None:
            self._watch.happened(Fault.STOP)
            answer.has_left = True
            self._do(self.streams.stop(answer.arrival.request.id, self._loop.now))
