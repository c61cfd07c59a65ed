"""One answer's way to its client: tokens wait here until the client takes them, all that came since in one chunk."""

from bisect import bisect_left
from dataclasses import dataclass, field, replace

from cluster.gateway.ledger import GAP_BOUNDS_S, CallEnd, CallFacts, RequestLedger
from cluster.gateway.stops import AnswerText
from cluster.gateway.streams import Delivered, Ended
from core.events import FinishReason
from core.goodput import Outcome
from core.request import Request
from core.stats import Timing
from core.step import TokenLogprobs

PENDING_TOKEN_BYTES = 8
"""What a waiting token is charged: its id and its text on the wire."""

PENDING_SCORE_BYTES = 24
PENDING_TOP_BYTES = 13
"""What its logprobs are charged beside: logprob, rank and framing; and an id with its logprob for each of the best."""


@dataclass(slots=True)
class Chunk:
    """Contiguous tokens of one choice with the text that became certain; none of either where its reader was nudged.

    Not frozen: one is made for every token, and that costs three times as much.

    `pieces` are `text`, cut by the tokens that made it certain; the last has what became certain with the end.
    `logprobs` is aligned with `token_ids` where asked, else empty. `finish` and `stop` come with the last chunk of the
    choice, `ended` with the very last of the call.
    """

    choice: int
    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    stop: str = ""
    ended: CallEnd | None = None
    pieces: tuple[str, ...] = ()


@dataclass(slots=True)
class _Clock:
    """Moments of one request, of the gateway's monotonic clock."""

    received_at: float
    told_at: float
    first_token_at: float | None = None
    last_token_at: float | None = None

    def since_received(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.received_at


@dataclass(slots=True, eq=False)
class ClientStream:
    """The tokens of one choice between the gateway and its client.

    Owns: what was delivered and not yet taken, and the answer's text, which says where a stop string ends it.
    """

    request: Request
    received_at: float
    told_at: float
    text: AnswerText
    facts: CallFacts = field(default_factory=CallFacts)
    ended: Ended | None = None
    _clock: _Clock = field(init=False)
    _gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS_S) + 1))
    _token_ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _score_bytes: int = 0
    _prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    _pieces: list[str] = field(default_factory=list)
    _rest: str = ""
    _num_taken: int = 0
    _has_told_end: bool = False

    def __post_init__(self) -> None:
        self._clock = _Clock(self.received_at, self.told_at)

    @property
    def pending_bytes(self) -> int:
        """What waits for the client. The prompt's logprobs, bounded at the door and told once, are not counted."""
        return len(self._token_ids) * PENDING_TOKEN_BYTES + self._score_bytes

    @property
    def has_news(self) -> bool:
        """Whether there is something to take."""
        return bool(self._token_ids) or (self.ended is not None and not self._has_told_end)

    def put(self, delivered: Delivered, now: float) -> None:
        """Take tokens in, up to the one that completes a stop string; nothing once the answer has ended."""
        if self.text.stop or self.ended is not None:
            return
        before = self.text.num_tokens
        self._pieces += self._texts(delivered.token_ids)
        num_taken = self.text.num_tokens - before
        self._token_ids += delivered.token_ids[:num_taken]
        if delivered.logprobs:
            scores = delivered.logprobs[:num_taken]
            self._logprobs += scores
            self._score_bytes += sum(PENDING_SCORE_BYTES + PENDING_TOP_BYTES * len(score.top_ids) for score in scores)
        self._prompt_logprobs = delivered.prompt_logprobs or self._prompt_logprobs
        self._note_times(num_taken, now)

    def _note_times(self, num_tokens: int, now: float) -> None:
        """Tokens that come together have no time between them."""
        if not num_tokens:
            return
        clock = self._clock
        if clock.last_token_at is None:
            clock.first_token_at = now
        else:
            self._gaps[bisect_left(GAP_BOUNDS_S, now - clock.last_token_at)] += 1
        self._gaps[0] += num_tokens - 1
        clock.last_token_at = now

    def _texts(self, token_ids: tuple[int, ...]) -> list[str]:
        """What became certain with each token; none for those after a stop string."""
        texts = []
        for token in token_ids:
            texts.append(self.text.push((token,)))
            if self.text.stop:
                break
        return texts

    def end(self, ended: Ended, now: float) -> RequestLedger:
        """Take the end in; the ledger of the request. A stop string in the text stands above what the node said."""
        if ended.outcome is Outcome.FINISHED:
            self._rest = self.text.finish()
            if self.text.stop:
                ended = replace(ended, finish=FinishReason.STOP, num_tokens=self.text.num_tokens)
        self.ended = ended
        return self._ledger(ended, now)

    def take(self) -> Chunk:
        """All that came since the last time."""
        index, finish = self._num_taken, self.ended.finish if self.ended else None
        pieces, self._pieces = self._pieces, []
        if self._rest:
            pieces[-1:] = ["".join((*pieces[-1:], self._rest))]
        chunk = Chunk(
            choice=self.request.sampling.choice,
            index=index,
            token_ids=tuple(self._token_ids),
            text="".join(pieces),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            finish=finish,
            stop=self.text.stop if finish else "",
            pieces=tuple(pieces),
        )
        self._token_ids, self._logprobs, self._prompt_logprobs, self._rest = [], [], (), ""
        self._score_bytes = 0
        self._num_taken += len(chunk.token_ids)
        self._has_told_end = self.ended is not None
        return chunk

    def _ledger(self, ended: Ended, now: float) -> RequestLedger:
        clock, timing = self._clock, ended.timing or Timing()
        admitted_s = clock.told_at - clock.received_at
        return RequestLedger(
            id=ended.request,
            outcome=ended.outcome,
            code=ended.error.code if ended.error else "",
            num_prompt_tokens=self.request.prompt.num_tokens,
            num_tokens=ended.num_tokens,
            num_attempts=ended.num_attempts,
            timing=replace(timing, admit_s=timing.admit_s + admitted_s),
            wall_s=now - clock.received_at,
            ttft_s=clock.since_received(clock.first_token_at),
            last_token_s=clock.since_received(clock.last_token_at),
            num_cached_tokens=ended.timing.num_cached_tokens if ended.timing else None,
            slo=self.request.slo,
            facts=self.facts,
            tenant=self.request.tenant,
            finish=ended.finish,
            received_at=clock.received_at,
            gaps=tuple(self._gaps),
        )
