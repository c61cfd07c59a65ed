"""The gateway's streams: gapless, in order, exactly once, one end, whatever arrives."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gateway.streams import MAX_HELD_TOKENS, Delivered, Ended, StreamOutput, Streams
from core.commands import Tell
from core.errors import ErrorInfo
from core.events import (
    AttemptLost,
    FinishReason,
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
from core.ids import SCHEDULER, GatewayId, RequestId, attempt_id
from core.request import SLO, Prompt, Request, SamplingParams, num_packed, pack_tokens, unpack_tokens
from core.stats import Timing
from core.step import TokenLogprobs
from core.timers import Timers

R = RequestId("r")
TIMING = Timing(decode_s=1.5)
USUAL = SamplingParams(64)


def request(
    name: str = "r", slo: SLO | None = None, deadline_s: float = 600.0, sampling: SamplingParams = USUAL
) -> Request:
    return Request(RequestId(name), Prompt(3), pack_tokens([7, 8, 9]), sampling, slo, deadline_s=deadline_s)


def opened(max_logged_tokens: int = 1000, slo: SLO | None = None, sampling: SamplingParams = USUAL) -> Streams:
    streams = Streams(GatewayId("g"), max_logged_tokens=max_logged_tokens)
    streams.open(request(slo=slo, sampling=sampling), 0.0)
    return streams


def tokens(number: int, first: int, *ids: int, finish: FinishReason | None = None, name: str = "r") -> TokensEmitted:
    last = len(ids) - 1
    return TokensEmitted(
        (attempt_id(RequestId(name), number),) * len(ids),
        tuple(range(first, first + len(ids))),
        ids,
        tuple(finish if i == last else None for i in range(len(ids))),
        tuple(TIMING if i == last and finish else None for i in range(len(ids))),
    )


SCORED = SamplingParams(64, logprobs=1, prompt_logprobs=1)


def score(token: int) -> TokenLogprobs:
    """Tells its token, so that one beside another token would show."""
    return TokenLogprobs(-float(token), 1, (token,), (-float(token),))


def scored(number: int, first: int, *ids: int, finish: FinishReason | None = None) -> TokensEmitted:
    """The same with scores; those of the prompt come beside the first token and tell the attempt."""
    of_prompt = ((score(number), score(number)), *(None,) * (len(ids) - 1))
    event = tokens(number, first, *ids, finish=finish)
    return replace(event, logprobs=tuple(map(score, ids)), prompt_logprobs=of_prompt)


def delivered(outputs: Sequence[StreamOutput]) -> list[int]:
    return [token for output in outputs if isinstance(output, Delivered) for token in output.token_ids]


def told(outputs: Sequence[StreamOutput]) -> list[object]:
    for output in outputs:
        assert not isinstance(output, Tell) or output.to == SCHEDULER
    return [output.event for output in outputs if isinstance(output, Tell)]


def test_opening_tells_the_scheduler_and_the_end_leaves_nothing_behind() -> None:
    streams = Streams(GatewayId("g"))
    assert streams.open(request(), 0.0) == [Tell(SCHEDULER, RequestArrived(request(), GatewayId("g")))]
    assert not streams.is_idle()
    assert streams.handle(tokens(0, 0, 11), 1.0) == [Delivered(R, 0, (11,))]
    outputs = streams.handle(tokens(0, 1, 12, finish=FinishReason.LENGTH), 2.0)
    assert outputs == [
        Delivered(R, 1, (12,)),
        Ended(R, Outcome.FINISHED, FinishReason.LENGTH, TIMING, None, 2, 1),
        Tell(SCHEDULER, StreamEnded(R, Outcome.FINISHED, 2, TIMING)),
    ]
    streams.check()
    assert streams.is_idle()


def test_tokens_that_overtake_each_other_are_put_in_order() -> None:
    streams = opened()
    assert streams.handle(tokens(0, 2, 13, finish=FinishReason.STOP), 1.0) == []
    assert streams.handle(tokens(0, 1, 12), 1.1) == []
    outputs = streams.handle(tokens(0, 0, 11), 1.2)
    assert outputs[0] == Delivered(R, 0, (11, 12, 13))
    assert isinstance(outputs[1], Ended)
    assert outputs[1].finish is FinishReason.STOP


def test_repeated_tokens_are_dropped_and_counted() -> None:
    streams = opened()
    streams.handle(tokens(0, 0, 11), 1.0)
    assert streams.handle(tokens(0, 0, 99), 1.0) == []
    streams.handle(tokens(0, 5, 16), 1.0)
    assert streams.handle(tokens(0, 5, 98), 1.0) == []
    assert streams.counts.repeated == 2


def test_a_lost_attempt_is_fenced_before_its_log_is_answered() -> None:
    streams = opened()
    streams.handle(tokens(0, 0, 11, 12), 1.0)
    streams.handle(tokens(0, 3, 14), 1.0)
    assert streams.handle(AttemptLost(attempt_id(R, 0)), 1.5) == [
        Tell(SCHEDULER, RequestResumed(R, pack_tokens([11, 12])))
    ]
    streams.check()
    assert streams.handle(tokens(0, 2, 13), 1.6) == []
    assert streams.counts.fenced == 1
    assert delivered(streams.handle(tokens(1, 2, 23), 2.0)) == [23]
    assert delivered(streams.handle(tokens(1, 3, 24, finish=FinishReason.LENGTH), 2.0)) == [24]


def test_a_second_notice_of_the_same_loss_changes_nothing() -> None:
    streams = opened()
    streams.handle(AttemptLost(attempt_id(R, 3)), 1.0)
    assert streams.handle(AttemptLost(attempt_id(R, 3)), 1.0) == []
    assert streams.handle(AttemptLost(attempt_id(R, 2)), 1.0) == []


def test_the_scheduler_can_give_a_request_up() -> None:
    streams = opened()
    error = ErrorInfo("overloaded", "full", 2.0)
    assert streams.handle(RequestEnded(R, Outcome.REFUSED, error), 1.0) == [
        Ended(R, Outcome.REFUSED, None, None, error, 0, 0)
    ]
    assert streams.handle(RequestEnded(R, Outcome.FAILED, error), 1.0) == []
    assert streams.is_idle()


def test_cancelling_ends_at_once_and_only_once() -> None:
    streams = opened()
    streams.handle(tokens(0, 0, 11), 1.0)
    ended, tell = streams.cancel(R, 2.0)
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.num_tokens) == (Outcome.CANCELLED, 1)
    assert tell == Tell(SCHEDULER, RequestCancelled(R))
    assert streams.cancel(R, 2.0) == []
    assert streams.handle(tokens(0, 1, 12), 2.0) == []
    assert streams.counts.unknown == 1


def test_a_stop_string_finishes_the_stream() -> None:
    streams = opened()
    ended, tell = streams.stop(R, 1.0)
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.finish) == (Outcome.FINISHED, FinishReason.STOP)
    assert tell == Tell(SCHEDULER, StreamEnded(R, Outcome.FINISHED))
    assert streams.stop(R, 1.0) == []


def test_a_stopped_stream_has_the_timing_that_its_last_attempt_told() -> None:
    streams, early = opened(), Timing(prefill_s=0.5, num_cached_tokens=3)
    streams.handle(replace(tokens(0, 0, 11), timings=(early,)), 1.0)
    streams.handle(tokens(0, 1, 12), 1.0)
    ended, _ = streams.stop(R, 1.0)
    assert isinstance(ended, Ended)
    assert ended.timing == early
    streams = opened()
    streams.handle(replace(tokens(0, 0, 11), timings=(early,)), 1.0)
    streams.handle(AttemptLost(attempt_id(R, 0)), 1.0)
    streams.handle(tokens(1, 1, 12), 1.0)
    ended, _ = streams.stop(R, 1.0)
    assert isinstance(ended, Ended)
    assert ended.timing is None


def test_tokens_keep_their_logprobs_when_they_overtake_each_other() -> None:
    streams = opened(sampling=SCORED)
    assert streams.handle(scored(0, 1, 12, 13), 1.0) == []
    assert streams.handle(scored(0, 0, 11), 1.0) == [
        Delivered(R, 0, (11, 12, 13), (score(11), score(12), score(13)), (score(0), score(0)))
    ]


def test_a_resumed_attempt_repeats_no_logprobs_of_the_prompt() -> None:
    streams = opened(sampling=SCORED)
    assert streams.handle(scored(0, 0, 11), 1.0) == [Delivered(R, 0, (11,), (score(11),), (score(0), score(0)))]
    streams.handle(AttemptLost(attempt_id(R, 0)), 1.0)
    assert streams.handle(scored(1, 1, 12), 1.0) == [Delivered(R, 1, (12,), (score(12),))]


def test_an_attempt_lost_before_its_first_token_leaves_the_prompts_logprobs_to_the_next() -> None:
    streams = opened(sampling=SCORED)
    streams.handle(scored(0, 1, 12), 1.0)
    streams.handle(AttemptLost(attempt_id(R, 0)), 1.0)
    assert streams.handle(scored(1, 0, 21), 1.0) == [Delivered(R, 0, (21,), (score(21),), (score(1), score(1)))]


def test_logprobs_that_nobody_asked_for_go_nowhere() -> None:
    assert opened().handle(scored(0, 0, 11), 1.0) == [Delivered(R, 0, (11,))]


@pytest.mark.parametrize("missing", ["logprobs", "prompt_logprobs"])
def test_a_token_without_the_logprobs_that_were_asked_for_fails_the_request(missing: str) -> None:
    streams = opened(sampling=SCORED)
    event = scored(0, 0, 11, 12)
    event = replace(event, logprobs=()) if missing == "logprobs" else replace(event, prompt_logprobs=())
    ended, tell = streams.handle(event, 1.0)
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert (ended.outcome, ended.error.code, ended.num_tokens) == (Outcome.FAILED, "internal", 0)
    assert tell == Tell(SCHEDULER, StreamEnded(R, Outcome.FAILED))
    assert streams.is_idle()


def test_silence_is_told_once_and_measured_only_after_the_first_token() -> None:
    streams = opened(slo=SLO(1.0, 0.2))
    assert streams.handle(Tick(), 100.0) == []
    streams.handle(tokens(0, 0, 11), 100.0)
    assert streams.handle(Tick(), 105.9) == []
    assert told(streams.handle(Tick(), 106.1)) == [StreamSilent(R)]
    assert streams.handle(Tick(), 120.0) == []
    streams.handle(tokens(0, 1, 12), 121.0)
    assert told(streams.handle(Tick(), 127.1)) == [StreamSilent(R)]


def test_a_resumed_attempt_may_take_its_time_to_begin() -> None:
    streams = opened()
    streams.handle(tokens(0, 0, 11), 1.0)
    streams.handle(AttemptLost(attempt_id(R, 0)), 2.0)
    assert streams.handle(Tick(), 60.0) == []


def test_a_gap_is_told_when_its_own_time_is_over() -> None:
    streams = opened()
    streams.handle(tokens(0, 0, 11), 1.0)
    streams.handle(tokens(0, 2, 13), 5.0)
    assert streams.handle(Tick(), 5.9) == []
    assert told(streams.handle(Tick(), 6.1)) == [StreamSilent(R)]
    assert delivered(streams.handle(tokens(0, 1, 12), 6.2)) == [12, 13]
    streams.check()


def test_a_stream_outlives_its_deadline_only_by_the_grace() -> None:
    streams = Streams(GatewayId("g"))
    streams.open(request(deadline_s=2.0), 1.0)
    assert streams.handle(Tick(), 3.4) == []
    ended, tell = streams.handle(Tick(), 3.6)
    assert isinstance(ended, Ended)
    assert ended.outcome is Outcome.EXPIRED
    assert tell == Tell(SCHEDULER, StreamEnded(R, Outcome.EXPIRED))


def test_the_shell_can_let_a_stream_expire_because_the_call_did() -> None:
    streams = opened()
    ended, tell = streams.expire(R, 2.0)
    assert isinstance(ended, Ended)
    assert ended.outcome is Outcome.EXPIRED
    assert tell == Tell(SCHEDULER, StreamEnded(R, Outcome.EXPIRED))
    assert streams.expire(R, 2.0) == []


def test_a_stream_longer_than_its_log_fails_with_its_node() -> None:
    streams = opened(max_logged_tokens=2)
    streams.handle(tokens(0, 0, 11, 12), 1.0)
    assert streams.counts.lost_logs == 0
    assert delivered(streams.handle(tokens(0, 2, 13), 1.0)) == [13]
    streams.check()
    ended, tell = streams.handle(AttemptLost(attempt_id(R, 0)), 2.0)
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert (ended.outcome, ended.error.code, ended.num_tokens) == (Outcome.FAILED, "worker_lost", 3)
    assert tell == Tell(SCHEDULER, StreamEnded(R, Outcome.FAILED, 3))


def test_the_newest_streams_lose_their_logs_when_all_together_are_too_long() -> None:
    streams = Streams(GatewayId("g"), max_logged_in_all=4)
    for name in ("old", "new"):
        streams.open(request(name), 0.0)
    streams.handle(tokens(0, 0, 1, 2, name="new"), 1.0)
    streams.handle(tokens(0, 0, 1, 2, 3, name="old"), 1.0)
    streams.check()
    (tell,) = told(streams.handle(AttemptLost(attempt_id(RequestId("old"), 0)), 2.0))
    assert isinstance(tell, RequestResumed)
    assert num_packed(tell.log) == 3
    assert isinstance(streams.handle(AttemptLost(attempt_id(RequestId("new"), 0)), 2.0)[0], Ended)


def test_early_tokens_are_held_up_to_a_bound() -> None:
    streams = opened()
    streams.handle(tokens(0, 1, *range(MAX_HELD_TOKENS + 5)), 1.0)
    streams.check()
    assert streams.counts.overflowed == 5
    assert len(delivered(streams.handle(tokens(0, 0, 9), 1.0))) == MAX_HELD_TOKENS + 1


def test_a_request_cannot_be_opened_twice() -> None:
    with pytest.raises(AssertionError):
        opened().open(request(), 0.0)


def _piece(number: int, index: int, length: int) -> TokensEmitted:
    """Token values tell attempt and index, so that a token of a fenced attempt would show."""
    finish = FinishReason.LENGTH if index == length - 1 else None
    return scored(number, index, number * 1000 + index, finish=finish)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_order_repeat_and_loss_gives_a_gapless_stream_with_one_end(data: st.DataObject) -> None:
    """Attempts are lost in between; what a client got is a prefix of what it gets; the last attempt loses nothing."""
    length = data.draw(st.integers(1, 12), "length")
    num_lost = data.draw(st.integers(0, 3), "attempts lost")
    streams = Streams(GatewayId("g"), Timers())
    streams.open(request(sampling=SCORED), 0.0)
    seen: list[int] = []
    ends: list[Ended] = []
    stale: list[TokensEmitted] = []

    def feed(event: TokensEmitted | AttemptLost | Tick, now: float) -> list[object]:
        outputs = streams.handle(event, now)
        streams.check()
        for output in outputs:
            if isinstance(output, Delivered):
                assert output.index == len(seen)
                assert not ends
                seen.extend(output.token_ids)
                assert output.logprobs == tuple(map(score, output.token_ids))
                assert len(output.prompt_logprobs) == (2 if output.index == 0 else 0)
            elif isinstance(output, Ended):
                ends.append(output)
        return told(outputs)

    first = 0
    for number in range(num_lost + 1):
        pieces = [_piece(number, index, length) for index in range(first, length)]
        is_last = number == num_lost
        shown = pieces if is_last else data.draw(st.lists(st.sampled_from(pieces), max_size=15))
        choices: list[TokensEmitted | Tick] = [*shown, *stale, Tick()]
        repeats = data.draw(st.lists(st.sampled_from(choices), max_size=8))
        for event in data.draw(st.permutations([*shown, *repeats])):
            before = list(seen)
            feed(event, float(number))
            assert seen[: len(before)] == before
        stale += shown
        if ends:
            break
        answer = feed(AttemptLost(attempt_id(R, number)), float(number))
        assert isinstance(answer[0], RequestResumed)
        assert list(unpack_tokens(answer[0].log)) == seen
        first = len(seen)
    assert len(ends) == 1
    assert ends[0].num_tokens == length == len(seen)
    assert [token % 1000 for token in seen] == list(range(length))
    assert [token // 1000 for token in seen] == sorted(token // 1000 for token in seen)
    assert streams.is_idle()
