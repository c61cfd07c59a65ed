"""The machine of the client streams: numbers, order, exactly once, one end. Imports core only."""

from dataclasses import dataclass

from cluster.gateway.open_stream import HeldToken, OpenStream, Scores, StreamCounts
from core.commands import Tell
from core.errors import ErrorInfo
from core.events import (
    AttemptLost,
    FinishReason,
    GatewayEvent,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    RequestResumed,
    StreamEnded,
    StreamSilent,
    Tick,
    TokensEmitted,
)
from core.goodput import Outcome
from core.ids import SCHEDULER, AttemptId, GatewayId, RequestId, number_of, request_of
from core.request import Request
from core.stats import Timing
from core.timers import Timers

MAX_HELD_TOKENS = 1024
"""Early tokens kept for one stream while an earlier one is missing; the receiver's window of one link, too."""

EXPIRY_GRACE_S = 0.5
"""The scheduler expires requests; this much later the gateway does it alone, so that every stream ends in time."""

SILENCE_TPOTS = 5.0
CLIENT_LEFT = ErrorInfo("client_closed", "the client left before the answer was complete")
UNSCORED = ErrorInfo("internal", "a node told a token without the logprobs that were asked for")


@dataclass(frozen=True, slots=True)
class Delivered:
    """Tokens for the client: contiguous, in order, each exactly once. `index` is the first one's place.

    `logprobs` is aligned with `token_ids` where they were asked for, else empty; `prompt_logprobs` come with place 0.
    """

    request: RequestId
    index: int
    token_ids: tuple[int, ...]
    logprobs: Scores = ()
    prompt_logprobs: Scores = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a stream, exactly once, after its last `Delivered`. `error` is None only where it is FINISHED."""

    request: RequestId
    outcome: Outcome
    finish: FinishReason | None
    timing: Timing | None
    error: ErrorInfo | None
    num_tokens: int
    num_attempts: int


StreamOutput = Tell | Delivered | Ended


class Streams:
    """Delivers each request's tokens gapless, in order and exactly once, and ends it exactly once.

    Owns: the open streams, their token logs, and every request's terminal state.
    Invariant: at most one attempt extends a stream; a fenced attempt never does again.
    """

    def __init__(
        self,
        gateway: GatewayId,
        timers: Timers = Timers(),  # noqa: B008 - frozen
        max_logged_tokens: int = 131_072,
        max_logged_in_all: int = 16_777_216,
        *,
        bunches: bool = False,
    ) -> None:
        """`bunches`: tokens that one message brings for a stream go out as one `Delivered`, else one by one."""
        self.gateway = gateway
        self._bunches = bunches
        self.counts = StreamCounts()
        self._timers = timers
        self._max_logged_tokens = max_logged_tokens
        self._max_logged_in_all = max_logged_in_all
        self._num_logged = 0
        self._streams: dict[RequestId, OpenStream] = {}

    def open(self, request: Request, now: float) -> list[StreamOutput]:
        """Begin a stream; the scheduler hears of the request."""
        assert request.id not in self._streams, f"{request.id} is open already"
        self._streams[request.id] = OpenStream(request, now)
        return [Tell(SCHEDULER, RequestArrived(request, self.gateway))]

    def cancel(self, request: RequestId, now: float, error: ErrorInfo = CLIENT_LEFT) -> list[StreamOutput]:
        """End a stream CANCELLED at once; nothing where it has ended already."""
        stream = self._streams.get(request)
        if stream is None:
            return []
        return [self._end(stream, Outcome.CANCELLED, error=error), Tell(SCHEDULER, RequestCancelled(request))]

    def stop(self, request: RequestId, now: float) -> list[StreamOutput]:
        """End a stream FINISHED because its text matched a stop string; nothing where it has ended already.

        What was delivered beyond the match still counts here: whoever has the text knows where that was.
        """
        stream = self._streams.get(request)
        if stream is None:
            return []
        ended = self._end(stream, Outcome.FINISHED, finish=FinishReason.STOP, timing=stream.timing)
        return [ended, self._told_end(ended)]

    def expire(self, request: RequestId, now: float) -> list[StreamOutput]:
        """End a stream EXPIRED because its time is over; nothing where it has ended already."""
        stream = self._streams.get(request)
        return [] if stream is None else self._expire(stream)

    def handle(self, event: GatewayEvent, now: float) -> list[StreamOutput]:
        """Take one event in; events of requests that are unknown or ended are dropped and counted."""
        match event:
            case TokensEmitted():
                return self._on_tokens(event, now)
            case AttemptLost(attempt):
                return self._on_attempt_lost(attempt)
            case RequestEnded(request, outcome, error):
                stream = self._find(request)
                return [] if stream is None else [self._end(stream, outcome, error=error)]
            case Tick():
                return self._on_tick(now)

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    def is_idle(self) -> bool:
        """Whether no stream is open and nothing is kept of any."""
        return not self._streams and self._num_logged == 0

    def check(self) -> None:
        """Assert what must hold between two events."""
        for request, stream in self._streams.items():
            assert stream.request.id == request
            assert stream.fenced <= stream.current, f"{request}: fence {stream.fenced} above attempt {stream.current}"
            assert all(index > stream.next for index in stream.held), f"{request}: holds what could be delivered"
            assert len(stream.held) <= MAX_HELD_TOKENS
            assert bool(stream.held) == (stream.gap_since is not None), f"{request}: a gap and its clock disagree"
            assert stream.log is None or len(stream.log) == stream.next, f"{request}: log and stream differ"
            assert stream.log is None or len(stream.log) <= self._max_logged_tokens
        assert self._num_logged == sum(len(stream.log or ()) for stream in self._streams.values())
        assert self._num_logged <= self._max_logged_in_all

    def _on_tokens(self, event: TokensEmitted, now: float) -> list[StreamOutput]:
        outputs: list[StreamOutput] = []
        nothing = (None,) * len(event.attempts)
        scores, of_prompts = event.logprobs or nothing, event.prompt_logprobs or nothing
        attempts, first, num_tokens = event.attempts, 0, len(event.attempts)
        while first < num_tokens:
            attempt, end = attempts[first], first + 1
            stream, number = self._find(request_of(attempt)), number_of(attempt)
            if stream is not None and stream.is_plainly_next(number, event.indices[first]):
                end = self._end_of_bunch(event, first) if self._bunches else end
                outputs += self._pass_on(stream, event, first, end, now)
            elif stream is not None and self._keep(stream, number, event.indices[first]):
                columns = (event.token_ids, event.finishes, event.timings, scores, of_prompts)
                token = HeldToken(*[column[first] for column in columns])  # type: ignore[arg-type]
                outputs += self._take(stream, event.indices[first], token, now)
            first = end
        return outputs

    def _end_of_bunch(self, event: TokensEmitted, first: int) -> int:
        """One past the last token that follows the first one without a gap, at most one that ends the answer."""
        attempt, index, end = event.attempts[first], event.indices[first], first + 1
        while (
            end < len(event.attempts)
            and event.attempts[end] == attempt
            and event.indices[end] == index + end - first
            and event.finishes[end - 1] is None
        ):
            end += 1
        return end

    def _pass_on(
        self, stream: OpenStream, event: TokensEmitted, first: int, end: int, now: float
    ) -> list[StreamOutput]:
        """The usual tokens, next in order: what `_take` would do, at half the cost."""
        delivered = Delivered(stream.request.id, stream.next, event.token_ids[first:end])
        finish = event.finishes[end - 1]
        stream.next += end - first
        stream.timing = event.timings[end - 1] or event.timings[first] or stream.timing
        stream.delivered_at, stream.told_silent = now, False
        self._log(stream, delivered.token_ids)
        if finish is None:
            return [delivered]
        ended = self._end(stream, Outcome.FINISHED, finish=finish, timing=stream.timing)
        return [delivered, ended, self._told_end(ended)]

    def _take(self, stream: OpenStream, index: int, token: HeldToken, now: float) -> list[StreamOutput]:
        """A token that is of use; one without the scores that were asked for is a node's mistake, and the end."""
        if stream.is_scored and not token.answers(stream.request.sampling, index):
            ended = self._end(stream, Outcome.FAILED, error=UNSCORED)
            return [ended, self._told_end(ended)]
        stream.held[index] = token
        if stream.gap_since is None:
            stream.gap_since = now
        return self._deliver(stream, now)

    def _keep(self, stream: OpenStream, number: int, index: int) -> bool:
        """Whether this token may still be of use."""
        if number <= stream.fenced or number < stream.current:
            self.counts.fenced += 1
            return False
        stream.meet(number)
        if index < stream.next or index in stream.held:
            self.counts.repeated += 1
            return False
        if index > stream.next and len(stream.held) >= MAX_HELD_TOKENS:
            self.counts.overflowed += 1
            return False
        return True

    def _deliver(self, stream: OpenStream, now: float) -> list[StreamOutput]:
        """What can go out now, and the end where it is among it."""
        index, tokens, finish = stream.next, [], None
        while finish is None and (held := stream.held.pop(stream.next, None)) is not None:
            tokens.append(held)
            stream.next += 1
            stream.timing = held.timing or stream.timing
            finish = held.finish
        if not tokens:
            return []
        stream.delivered_at, stream.gap_since, stream.told_silent = now, now if stream.held else None, False
        token_ids = tuple([token.token_id for token in tokens])
        self._log(stream, token_ids)
        delivered = Delivered(stream.request.id, index, token_ids, *stream.scores(index, tokens))
        if finish is None:
            return [delivered]
        ended = self._end(stream, Outcome.FINISHED, finish=finish, timing=stream.timing)
        return [delivered, ended, self._told_end(ended)]

    def _log(self, stream: OpenStream, token_ids: tuple[int, ...]) -> None:
        if stream.log is None:
            return
        stream.log.extend(token_ids)
        self._num_logged += len(token_ids)
        if len(stream.log) > self._max_logged_tokens:
            self._lose_log(stream)
        while self._num_logged > self._max_logged_in_all:
            self._lose_log(next(newest for newest in reversed(self._streams.values()) if newest.log))

    def _lose_log(self, stream: OpenStream) -> None:
        assert stream.log is not None
        self._num_logged -= len(stream.log)
        self.counts.lost_logs += 1
        stream.log = None

    def _on_attempt_lost(self, attempt: AttemptId) -> list[StreamOutput]:
        stream, number = self._find(request_of(attempt)), number_of(attempt)
        if stream is None:
            return []
        if number <= stream.fenced or number < stream.current:
            self.counts.fenced += 1
            return []
        stream.meet(number)
        stream.fenced = number
        stream.forget()
        if stream.log is None:
            why = ErrorInfo("worker_lost", f"a node was lost after {stream.next} tokens, too many to resume")
            ended = self._end(stream, Outcome.FAILED, error=why)
            return [ended, self._told_end(ended)]
        return [Tell(SCHEDULER, RequestResumed(stream.request.id, stream.log.tobytes()))]

    def _on_tick(self, now: float) -> list[StreamOutput]:
        outputs: list[StreamOutput] = []
        for stream in tuple(self._streams.values()):
            if now - stream.opened_at > stream.request.deadline_s + EXPIRY_GRACE_S:
                outputs += self._expire(stream)
            elif self._is_silent(stream, now):
                stream.told_silent = True
                outputs.append(Tell(SCHEDULER, StreamSilent(stream.request.id)))
        return outputs

    def _expire(self, stream: OpenStream) -> list[StreamOutput]:
        why = ErrorInfo("deadline_exceeded", f"the request's {stream.request.deadline_s:.3g} s are over")
        ended = self._end(stream, Outcome.EXPIRED, error=why)
        return [ended, self._told_end(ended)]

    def _is_silent(self, stream: OpenStream, now: float) -> bool:
        """Whether a gap or a silence has lasted too long and was not told of yet."""
        if stream.told_silent:
            return False
        if stream.gap_since is not None and now - stream.gap_since > self._timers.gap_s:
            return True
        tpot_s = stream.request.slo.tpot_s if stream.request.slo else 0.0
        silence_s = self._timers.silence_s + SILENCE_TPOTS * tpot_s
        return stream.delivered_at is not None and now - stream.delivered_at > silence_s

    def _end(
        self,
        stream: OpenStream,
        outcome: Outcome,
        *,
        finish: FinishReason | None = None,
        timing: Timing | None = None,
        error: ErrorInfo | None = None,
    ) -> Ended:
        del self._streams[stream.request.id]
        self._num_logged -= len(stream.log or ())
        return Ended(stream.request.id, outcome, finish, timing, error, stream.next, stream.num_attempts)

    def _told_end(self, ended: Ended) -> Tell:
        return Tell(SCHEDULER, StreamEnded(ended.request, ended.outcome, ended.num_tokens, ended.timing))

    def _find(self, request: RequestId) -> OpenStream | None:
        stream = self._streams.get(request)
        if stream is None:
            self.counts.unknown += 1
        return stream
