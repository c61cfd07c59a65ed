"""`penstock generate` against a fake cluster: every flag reaches the nodes, and what it prints."""

import asyncio
from collections.abc import Callable

import pytest

from cluster.cli import main
from core.errors import ErrorInfo
from core.events import RequestEnded
from core.goodput import Outcome
from core.request import Request
from tests.gateway.calls import TEXT
from tests.gateway.fake_cluster import Place, score, serve


def command(place: Place, *flags: str) -> list[str]:
    return ["generate", TEXT, "--raw", "--address", place.server.address, *flags]


def run(*flags: str, prepare: Callable[[Place], None] = lambda place: None, status: int = 0) -> Place:
    """One command; the place as it was left."""
    places = []

    async def scenario(place: Place) -> None:
        prepare(place)
        places.append(place)
        assert await asyncio.to_thread(main, command(place, *flags)) == status

    serve(scenario)
    return places[0]


def test_every_flag_reaches_the_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.5,
        "min_p": 0.25,
        "seed": 3,
        "presence_penalty": -1.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "logprobs": 2,
        "prompt_logprobs": 1,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    lists = ["--stop-token-ids", "5,6", "--logit-bias", "7=-100", "--logit-bias", "8=1.5", "--ignore-eos"]
    sampling = run(*flags, *lists).cluster.arrived[0].sampling
    assert {name: getattr(sampling, name) for name in numbers} == numbers
    assert (sampling.stop_token_ids, sampling.logit_bias) == ((5, 6), ((7, -100.0), (8, 1.5)))
    assert sampling.ignore_eos


def test_one_answer_is_printed_as_it_is_and_its_scores_beside(capsys: pytest.CaptureFixture[str]) -> None:
    place = run("--max-tokens", "2", "--logprobs", "1", "--prompt-logprobs", "0", "--timing")
    printed, tokens = capsys.readouterr(), place.tokenizer.encode(TEXT)
    assert printed.out == place.tokenizer.decode(tokens[:2]) + "\n"
    lines = printed.err.splitlines()
    assert f"prompt token 1, logprob {score(-1, 1, 0).logprob:.4f}, rank 2" in lines
    first = score(0, 0, 1)
    assert f"token 0: {tokens[0]}, logprob {first.logprob:.4f}, rank 1; 0 {first.top_logprobs[0]:.4f}" in lines
    assert f"length; {len(tokens)} prompt (2 cached) and 2 answer tokens" in lines[-1]


def test_several_answers_are_printed_in_order_each_with_its_number_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    def last_first(place: Place) -> None:
        async def answer(request: Request) -> None:
            if request.sampling.choice == 2:
                for arrived in reversed(place.cluster.arrived):
                    await asyncio.sleep(0.01)
                    place.cluster.emit(arrived, 0, 40)

        place.cluster.answer = answer

    place = run("--n", "3", "--max-tokens", "40", "--stop", "fox", prepare=last_first)
    text = place.tokenizer.decode(place.tokenizer.encode(TEXT))
    tokens = place.tokenizer.encode(TEXT)
    starts = [place.tokenizer.decode(tokens[choice:]) for choice in range(3)]
    expected = [
        f"── choice {choice}: stop at 'fox' ──\n{(start + text).partition('fox')[0]}\n"
        for choice, start in enumerate(starts)
    ]
    assert capsys.readouterr().out == "".join(expected)


def test_what_came_before_an_error_is_printed_as_broken_off(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(place: Place) -> None:
        async def answer(request: Request) -> None:
            place.cluster.emit(request, 0, 2)
            if request.sampling.choice == 1:
                place.cluster.give(RequestEnded(request.id, Outcome.FAILED, ErrorInfo("worker_lost", "gone")))

        place.cluster.answer = answer

    place = run("--n", "2", prepare=failing, status=1)
    printed = capsys.readouterr()
    assert "── choice 0: broken off ──\n" + place.tokenizer.decode(place.tokenizer.encode(TEXT)[:2]) in printed.out
    assert "worker_lost" in printed.err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--n", "9"], "sampling.n: must be 1 to 8"),
        (["--n", str(2**31 - 1)], "sampling.n: must be 1 to 8"),
        (["--stop", ""], "sampling.stop[0]"),
        (["--logit-bias", "999=1"], "sampling.logit_bias[999]"),
    ],
)
def test_the_server_judges_values(flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(*flags, status=1)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--n", str(2**31)], "--n must be a number of at most 32 bits"),
        (["--seed", str(2**63)], "--seed must be a number of at most 64 bits"),
        (["--stop-token-ids", str(2**63)], "--stop-token-ids must be a number of at most 64 bits"),
        (["--logit-bias", f"{2**63}=1"], "--logit-bias must be a number of at most 64 bits"),
        (["--stop", "\udcff"], "--stop must be Unicode text"),
    ],
)
def test_what_no_message_can_carry_is_named_by_its_flag(
    flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", *flags]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--logit-bias", "5"], ["--logit-bias", "x=1"], ["--stop-token-ids", "1,,2"]])
def test_what_cannot_be_read_is_a_wrong_flag(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "x", *flags])
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err
