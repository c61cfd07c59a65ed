"""Stop strings: found wherever tokens and messages cut the text, and nothing of them or after them gets out."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.detokenizer import ByteDetokenizer
from cluster.gateway.stops import AnswerText, StopMatcher
from core.events import FinishReason, TokensEmitted
from core.goodput import Outcome
from core.ids import attempt_id
from core.request import Request
from core.stats import Timing
from tests.gateway.calls import TEXT, answer, ask, choices_of
from tests.gateway.fake_cluster import TIMING, Place, serve

LETTERS = "abé\ufffd"
"""The last one stands for what is not UTF-8: an answer's end may bring it, and complete a stop string."""

STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4)


def naive(text: str, stops: Sequence[str], first: int = 0) -> tuple[str, str]:
    """The text before the first stop string to be complete at character `first` or later, and that stop string."""
    for end in range(first + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, ""


def longest_beginning(text: str, stops: Sequence[str]) -> int:
    """How much of the end of a text is the beginning of a stop string, short of all of it."""
    sizes = (size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@settings(max_examples=500, deadline=None)
@given(st.text(LETTERS, max_size=24), STOPS, st.lists(st.integers(0, 99), max_size=12), st.integers(0, 4))
def test_any_cutting_gives_what_a_naive_search_of_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int], num_before: int
) -> None:
    pieces = cut(text, cuts)
    first = len("".join(pieces[:num_before]))
    matcher, said = StopMatcher(stops), ""
    for number, piece in enumerate(pieces):
        said += matcher.push(piece, may_end=number >= num_before)
        seen = "".join(pieces[: number + 1])
        before, stop = naive(seen, stops, first)
        assert matcher.found == stop
        assert said == (before if stop else seen[: len(seen) - longest_beginning(seen, stops)])
    said += matcher.flush()
    assert (said, matcher.found) == naive(text, stops, first)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "ab", "b", "é", b"\xc3", b"\xa9", "", "bé"]), max_size=12),
    STOPS,
    st.integers(0, 5),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_the_answer_ends_with_the_token_that_completes_the_stop_string(
    words: list[str | bytes], stops: list[str], min_tokens: int, sizes: list[int]
) -> None:
    spelled = [word.encode() if isinstance(word, str) else word for word in words]
    answer = AnswerText(ByteDetokenizer(spelled.__getitem__), stops, min_tokens)
    text, place = "", 0
    for size in sizes:
        text += answer.push(range(place, min(place + size, len(words))))
        place = min(place + size, len(words))
    text += answer.finish()

    reference, lengths = ByteDetokenizer(spelled.__getitem__), []
    whole = ""
    for token in range(len(words)):
        whole += reference.push((token,))
        lengths.append(len(whole))
    lengths[-1:] = [len(whole := whole + reference.finish())]
    first = lengths[min_tokens - 1] if 0 < min_tokens <= len(words) else 0
    if min_tokens >= len(words):
        first = len(whole)
    before, stop = naive(whole, stops, first)
    assert (text, answer.stop) == (before, stop)
    end = len(before) + len(stop)
    assert answer.num_tokens == (next(i for i, n in enumerate(lengths, 1) if n >= end) if stop else len(words))


def test_the_first_to_be_complete_wins_then_the_longest() -> None:
    for stops, before, found in (
        (["abcd", "bc"], "xa", "bc"),
        (["bc", "abc"], "x", "abc"),
        (["a", "abc"], "x", "a"),
    ):
        matcher = StopMatcher(stops)
        assert (matcher.push("xabcd"), matcher.found) == (before, found)
        assert (matcher.push("more"), matcher.flush()) == ("", "")


def naive_tokens(place: Place, tokens: list[int], stop: str, min_tokens: int = 0) -> tuple[list[int], str]:
    """The tokens up to the match, and the text before it."""
    for count in range(1, len(tokens) + 1):
        text = place.tokenizer.decode(tokens[:count])
        if count > min_tokens and stop in text:
            return tokens[:count], text[: text.index(stop)]
    raise AssertionError("no match")


def echoed(place: Place, count: int) -> list[int]:
    prompt = place.tokenizer.encode(TEXT)
    return [prompt[i % len(prompt)] for i in range(count)]


@pytest.mark.parametrize("stop", ["x", "ox f", "漢", "字 😀", "😀the", "r 漢字 😀th"])
def test_an_answer_ends_before_its_stop_string_and_is_charged_up_to_it(stop: str) -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask(max_tokens=90, stop=["never", stop]))
        (choice,) = choices_of(responses)
        tokens, text = naive_tokens(place, echoed(place, 90), stop)
        assert (choice.token_ids, choice.text) == (tokens, text)
        assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
        assert responses[-1].usage.completion_tokens == len(tokens)
        assert list(place.cluster.told_ends.values()) == [Outcome.FINISHED]
        (ledger,) = place.gateway.ledgers
        assert (ledger.outcome, ledger.num_tokens) == (Outcome.FINISHED, len(tokens))

    serve(scenario)


def test_tokens_beyond_the_match_in_the_same_message_are_not_delivered() -> None:
    async def scenario(place: Place) -> None:
        async def burst(request: Request) -> None:
            place.cluster.emit(request, 0, 3)
            place.cluster.emit(request, 3, 50)

        place.cluster.answer = burst
        (choice,) = choices_of(await answer(place, ask(max_tokens=90, stop=["字"], logprobs=1)))
        tokens, text = naive_tokens(place, echoed(place, 90), "字")
        assert (choice.token_ids, choice.text, choice.finish_reason) == (tokens, text, "stop")
        assert len(choice.logprobs) == len(tokens)

    serve(scenario)


@pytest.mark.parametrize("surplus", [0, 1, 7])
def test_a_match_stands_above_a_length_that_was_reached_in_the_same_message(surplus: int) -> None:
    async def scenario(place: Place) -> None:
        async def burst(request: Request) -> None:
            place.cluster.emit(request, 0, 90)

        tokens, text = naive_tokens(place, echoed(place, 90), "漢字")
        place.cluster.answer = burst
        responses = await answer(place, ask(max_tokens=len(tokens) + surplus, stop=["漢字"]))
        (choice,) = choices_of(responses)
        assert (choice.finish_reason, choice.stop_reason, choice.text) == ("stop", "漢字", text)
        assert responses[-1].usage.completion_tokens == len(tokens)
        assert responses[-1].timing.decode_s == TIMING.decode_s

    serve(scenario)


def test_a_stop_string_is_not_seen_before_min_tokens() -> None:
    async def scenario(place: Place) -> None:
        num_prompt = len(place.tokenizer.encode(TEXT))
        (choice,) = choices_of(await answer(place, ask(max_tokens=90, stop=["fox"], min_tokens=num_prompt)))
        assert choice.text == TEXT + "the "
        assert choice.finish_reason == "stop"
        (request,) = place.cluster.arrived
        assert request.sampling.min_tokens == num_prompt

    serve(scenario)


def test_what_might_have_become_a_stop_string_comes_with_the_end() -> None:
    async def scenario(place: Place) -> None:
        num_prompt = len(place.tokenizer.encode(TEXT))
        responses = await answer(place, ask(max_tokens=num_prompt, stop=["字 😀!"]))
        (choice,) = choices_of(responses)
        assert (choice.text, choice.finish_reason, choice.stop_reason) == (TEXT, "length", "")
        assert responses[-1].text.endswith("字 😀")

    serve(scenario)


def test_a_timing_told_early_is_kept_for_an_answer_that_a_stop_string_ends() -> None:
    async def scenario(place: Place) -> None:
        async def speak(request: Request) -> None:
            attempt, tokens = attempt_id(request.id, 0), echoed(place, 9)
            early = Timing(prefill_s=0.25, num_cached_tokens=3)
            place.cluster.give(TokensEmitted((attempt,), (0,), (tokens[0],), (None,), (early,)))
            for index in range(1, 9):
                place.cluster.give(TokensEmitted((attempt,), (index,), (tokens[index],), (None,), (None,)))

        place.cluster.answer = speak
        responses = await answer(place, ask(stop=["fox"]))
        (choice,) = choices_of(responses)
        last: pb.GenerateResponse = responses[-1]
        assert choice.finish_reason == FinishReason.STOP.value
        assert (last.timing.prefill_s, last.usage.cached_tokens) == (0.25, 3)

    serve(scenario)


def test_cached_tokens_are_absent_where_no_node_told_them() -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask(max_tokens=90, stop=["fox"]))
        assert not responses[-1].usage.HasField("cached_tokens")
        assert responses[-1].timing.wall_s == responses[-1].timing.unaccounted_s + responses[-1].timing.admit_s

    serve(scenario)


def test_a_stream_resumed_on_another_node_is_matched_across_the_loss() -> None:
    async def scenario(place: Place) -> None:
        tokens, text = naive_tokens(place, echoed(place, 90), "漢字")
        place.cluster.answer = place.cluster.losing(after=len(tokens) - 1)
        (choice,) = choices_of(await answer(place, ask(max_tokens=90, stop=["漢字"])))
        assert (choice.token_ids, choice.text, choice.stop_reason) == (tokens, text, "漢字")

    serve(scenario)


def test_stop_token_ids_reach_the_nodes_and_their_text_stays() -> None:
    async def scenario(place: Place) -> None:
        async def stopping(request: Request) -> None:
            attempt = attempt_id(request.id, 0)
            place.cluster.give(TokensEmitted((attempt,), (0,), (70,), (FinishReason.STOP,), (TIMING,)))

        place.cluster.answer = stopping
        (choice,) = choices_of(await answer(place, ask(stop_token_ids=[70, 71])))
        assert place.cluster.arrived[0].sampling.stop_token_ids == (70, 71)
        assert (choice.finish_reason, choice.stop_reason) == ("stop", "")
        assert choice.text == place.tokenizer.decode([70])

    serve(scenario)
