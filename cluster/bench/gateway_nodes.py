"""A scheduler and nodes that cost next to nothing: what is left of a run is the gateway's."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from core.commands import Tell
from core.events import FinishReason, GatewayEvent, RequestArrived, RequestCancelled, StreamEnded, TokensEmitted
from core.ids import AttemptId, RequestId, attempt_id
from core.request import Request, unpack_tokens
from core.stats import Timing

ENDED = Timing(num_cached_tokens=0)


@dataclass(slots=True)
class MockRow:
    """One stream that is being answered: its prompt, round and round."""

    attempt: AttemptId
    prompt: tuple[int, ...]
    max_tokens: int
    num_told: int = 0


class MockNodes:
    """Tells the first token of a request at once and one more of every open stream in each step, in one message.

    Owns: the rows, and the timer of the steps, which are `step_s` apart however long one takes.
    """

    def __init__(self, step_s: float) -> None:
        self.handle: Callable[[GatewayEvent, float], None] = lambda event, now: None
        self._step_s = step_s
        self._rows: dict[RequestId, MockRow] = {}
        self._loop = asyncio.get_running_loop()
        self._next_at = self._loop.time()
        self._timer = self._loop.call_at(self._next_at, self._step)

    def tell(self, tell: Tell) -> None:
        """What the gateway says to the scheduler."""
        match tell.event:
            case RequestArrived(request):
                self._loop.call_soon(self._begin, request)
            case StreamEnded(request) | RequestCancelled(request):
                self._rows.pop(request, None)

    def close(self) -> None:
        """No step follows."""
        self._timer.cancel()

    def _begin(self, request: Request) -> None:
        prompt = tuple(unpack_tokens(request.token_ids))
        row = MockRow(attempt_id(request.id, 1), prompt, request.sampling.max_tokens)
        self._rows[request.id] = row
        self._emit([row])

    def _step(self) -> None:
        if self._rows:
            self._emit(list(self._rows.values()))
        now = self._loop.time()
        self._next_at = max(self._next_at + self._step_s, now)
        self._timer = self._loop.call_at(self._next_at, self._step)

    def _emit(self, rows: list[MockRow]) -> None:
        places = [row.num_told for row in rows]
        for row in rows:
            row.num_told += 1
        ends = [row.num_told >= row.max_tokens for row in rows]
        event = TokensEmitted(
            tuple([row.attempt for row in rows]),
            tuple(places),
            tuple([row.prompt[place % len(row.prompt)] for row, place in zip(rows, places, strict=True)]),
            tuple([FinishReason.LENGTH if end else None for end in ends]),
            tuple([ENDED if end else None for end in ends]),
        )
        self.handle(event, time.monotonic())
