"""What waits between the gateway and one client: counted, cut at a stop string, and taken choice by choice."""

import asyncio

import pytest

from cluster.gateway.access import ANYONE, Caller
from cluster.gateway.choices import ClientCall
from cluster.gateway.client_stream import ClientStream
from cluster.gateway.detokenizer import ByteDetokenizer
from cluster.gateway.stops import AnswerText
from cluster.gateway.streams import Delivered, Ended
from cluster.gateway.validation import Envelope
from core.errors import ErrorInfo
from core.events import FinishReason
from core.goodput import Outcome
from core.ids import RequestId
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.stats import Timing
from core.step import TokenLogprobs
from tests.gateway.fake_cluster import score


def stream(*stops: str, choice: int = 0) -> ClientStream:
    """Its tokens are letters: 0 is a."""
    sampling = SamplingParams(64, logprobs=2, choice=choice)
    request = Request(RequestId(f"r{choice}"), Prompt(1), pack_tokens([7]), sampling)
    return ClientStream(request, 0.0, 1.0, AnswerText(ByteDetokenizer(lambda token: bytes([97 + token])), stops))


def call_of(num_choices: int, name: str = "") -> ClientCall:
    """A call of somebody who needs no key."""
    envelope = Envelope(name, None, 0, "", 60.0, num_choices, ())
    streams = [stream(choice=choice) for choice in range(num_choices)]
    return ClientCall(envelope, streams, Caller(ANYONE).enter(num_choices, 0.0))


def delivered(index: int, *token_ids: int, choice: int = 0) -> Delivered:
    return Delivered(RequestId(f"r{choice}"), index, token_ids, scores(index, len(token_ids)))


def scores(index: int, count: int) -> tuple[TokenLogprobs, ...]:
    return tuple(score(0, place, 2) for place in range(index, index + count))


def ended(num_tokens: int, choice: int = 0, error: ErrorInfo | None = None) -> Ended:
    outcome, finish = (Outcome.FAILED, None) if error else (Outcome.FINISHED, FinishReason.LENGTH)
    return Ended(RequestId(f"r{choice}"), outcome, finish, Timing(), error, num_tokens, 1)


def test_what_waits_is_counted_until_it_is_taken() -> None:
    client = stream()
    client.put(delivered(0, 0, 1), 2.0)
    assert client.pending_bytes == 2 * (8 + 24 + 2 * 13)
    client.put(delivered(2, 2), 2.0)
    assert client.pending_bytes == 3 * (8 + 24 + 2 * 13)
    chunk = client.take()
    assert (chunk.index, chunk.token_ids, chunk.text, chunk.logprobs) == (0, (0, 1, 2), "abc", scores(0, 3))
    assert (client.pending_bytes, client.has_news) == (0, False)


def test_tokens_beyond_a_stop_string_leave_no_trace() -> None:
    client = stream("bc")
    client.put(delivered(0, 0, 1, 2, 3), 2.0)
    client.put(delivered(4, 4), 5.0)
    ledger = client.end(ended(5), 6.0)
    chunk = client.take()
    assert (chunk.token_ids, chunk.text, chunk.logprobs) == ((0, 1, 2), "a", scores(0, 3))
    assert (chunk.finish, chunk.stop) == (FinishReason.STOP, "bc")
    assert (ledger.num_tokens, ledger.last_token_s, ledger.wall_s) == (3, 2.0, 6.0)


def test_nothing_comes_after_the_end() -> None:
    client = stream()
    client.put(delivered(0, 0), 2.0)
    client.end(ended(1, error=ErrorInfo("slow_reader", "does not read")), 3.0)
    client.put(delivered(1, 1), 4.0)
    assert client.take().token_ids == (0,)
    assert not client.has_news


def test_choices_with_news_take_turns() -> None:
    async def scenario() -> list[int]:
        call, taken = call_of(3), list[int]()
        for place in range(4):
            for choice in range(3):
                call.put(delivered(place, 0, choice=choice), 2.0)
            taken.append((await call.next_chunk()).choice)
        return taken

    assert asyncio.run(scenario()) == [0, 1, 2, 0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_call_ends_with_the_chunk_after_which_nothing_is_left(order: tuple[int, int]) -> None:
    async def scenario() -> None:
        call = call_of(2, "mine")
        for choice in order:
            call.put(delivered(0, 0, choice=choice), 2.0)
            call.end(ended(1, choice), 3.0 + choice)
        first, last = await call.next_chunk(), await call.next_chunk()
        assert (first.finish, first.ended) == (FinishReason.LENGTH, None)
        assert last.ended is not None
        assert [ledger.id for ledger in last.ended.ledgers] == ["r0", "r1"]
        assert (last.ended.slowest.id, last.ended.num_tokens, last.ended.num_prompt_tokens) == ("r1", 2, 1)
        assert (call.name, call.requests, call.open_requests) == ("mine", ("r0", "r1"), ())

    asyncio.run(scenario())


def test_the_first_error_is_the_calls() -> None:
    async def scenario() -> None:
        call = call_of(2)
        call.end(ended(0, 1, ErrorInfo("worker_lost", "gone")), 3.0)
        assert call.ended is None
        call.end(ended(0, 0, ErrorInfo("client_closed", "the other one")), 3.0)
        assert call.ended is not None
        assert call.ended.error == ErrorInfo("worker_lost", "gone")

    asyncio.run(scenario())
