"""Log probabilities of answers and prompts, against those of the reference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.ids import AttemptId
from core.step import StepPlan, TokenLogprobs
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt

Reference = Callable[[Path, Tensor, str], Tensor]


def assert_scores(expected: Tensor, token: int, found: TokenLogprobs, num_top: int) -> None:
    assert found.logprob == pytest.approx(expected[token].item(), abs=1e-8)
    assert found.rank == int((expected > expected[token]).sum()) + 1
    top = expected.topk(num_top)
    assert found.top_ids == tuple(top.indices.tolist())
    assert found.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-8)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.1, "seed": 2, "repetition_penalty": 1.5}])
def test_logprobs_of_an_answer_are_those_of_the_reference(
    sampling: dict[str, object], make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make_folder("qwen3"), prompt(9)
    run = bench(folder)
    join = run.join("a#0", tokens, logprobs=3, **sampling)
    results = [run.executor.run(StepPlan(1, ("a#0",), (9,), joined=(join,)))]
    results += [run.executor.run(StepPlan(2 + step, ("a#0",), (1,))) for step in range(5)]
    out = [token for result in results for token in result.token_ids]
    expected = reference(folder, torch.tensor([tokens + out[:-1]]), "float64")[0].log_softmax(-1)[8:]
    for position, result in enumerate(results):
        assert_scores(expected[position], out[position], result.logprobs[0], 3)


@pytest.mark.parametrize("chunk", [1, 4, 5, 30])
def test_prompt_logprobs_are_those_of_the_reference_however_the_prompt_is_cut(
    chunk: int, make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make_folder("qwen2"), prompt(18)
    run = bench(folder)
    changes = {"joined": (run.join("a#0", tokens, prompt_logprobs=2), run.join("b#0", prompt(30, 1)))}
    scores: list[TokenLogprobs] = []
    for step, start in enumerate(range(0, 18, chunk)):
        num = min(chunk, 18 - start)
        result = run.executor.run(StepPlan(step, ("a#0", "b#0"), (num, 1), **changes))
        for part in result.prompt_logprobs:
            assert (part.attempt, part.first) == ("a#0", 1 + len(scores))
            scores += part.scores
        changes = {}
    expected = reference(folder, torch.tensor([tokens]), "float64")[0].log_softmax(-1)
    assert len(scores) == 17
    for position, found in enumerate(scores, 1):
        assert_scores(expected[position - 1], tokens[position], found, 2)


def test_logprobs_are_told_where_asked_only(make_folder: Callable[..., Path], bench: Callable[..., Bench]) -> None:
    run = bench(make_folder("qwen2"))
    joins = run.join("a#0", prompt(5)), run.join("b#0", prompt(6), logprobs=0)
    result = run.executor.run(StepPlan(1, ("a#0", "b#0"), (5, 6), joined=joins))
    assert result.logprobs[0] is None
    assert result.logprobs[1] is not None
    assert (result.logprobs[1].top_ids, result.logprobs[1].rank) == ((), 1)
    run.run(left=(AttemptId("b#0"),))
    assert run.executor.run(StepPlan(2, ("a#0",), (1,))).logprobs == ()


def test_drafted_tokens_bring_their_own_logprobs(
    make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make_folder("llama, 8 heads on 2"), [*prompt(12), *prompt(12), *prompt(4)]
    run = bench(folder)
    run.run(("a#0", len(tokens)), joined=(run.join("a#0", tokens, room=90, logprobs=1),))
    (first,) = run.executor._rows[AttemptId("a#0")].token_ids[-1:]
    out, logprobs, num_steps = [first], [], 0
    while len(out) < 60:
        result = run.executor.run(StepPlan(num_steps, ("a#0",), (1,), max_drafts=(4,)))
        out += result.token_ids
        logprobs += result.logprobs
        num_steps += 1
    assert num_steps < 59, "some draft was confirmed"
    expected = reference(folder, torch.tensor([tokens + out]), "float64")[0].log_softmax(-1)
    for place, found in enumerate(logprobs):
        assert_scores(expected[len(tokens) + place], out[place + 1], found, 1)
