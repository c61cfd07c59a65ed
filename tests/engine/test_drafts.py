"""Drafts: guesses that are computed beside the next token, and change nothing but the number of steps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.ids import AttemptId
from core.step import StepPlan
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt


@pytest.fixture
def run(make_folder: Callable[..., Path], bench: Callable[..., Bench]) -> Bench:
    return bench(make_folder("llama, 8 heads on 2"), "float64", num_blocks=256)


def drafted(
    run: Bench, name: str, token_ids: list[int], num: int, most: int, **sampling: object
) -> tuple[list[int], int]:
    """Answer with up to `most` drafts a step; the tokens and the number of steps."""
    join = run.join(name, token_ids, room=num + most + 1, **sampling)
    out = list(run.run((name, len(token_ids)), joined=(join,)).values())
    steps = 0
    while len(out) < num:
        result = run.executor.run(StepPlan(1000 + steps, (AttemptId(name),), (1,), max_drafts=(most,)))
        assert set(result.attempts) == {name}
        assert len(result.token_ids) <= 1 + result.num_drafts[0] <= 1 + most
        out += result.token_ids
        steps += 1
    run.run(left=(AttemptId(name),))
    return out[:num], steps


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.2, "seed": 3}, {"temperature": 1.2, "seed": 4, "top_k": 9}])
def test_drafts_do_not_change_the_answer(run: Bench, most: int, sampling: dict[str, object]) -> None:
    tokens = [*prompt(12), *prompt(12), *prompt(5)]
    expected = run.generate("plain#0", tokens, 40, **sampling)
    assert drafted(run, "drafted#0", tokens, 40, most, **sampling)[0] == expected


def test_an_answer_that_repeats_itself_takes_fewer_steps(run: Bench) -> None:
    tokens = prompt(10)
    answer = run.generate("plain#0", tokens, 60)
    again, steps = drafted(run, "drafted#0", [*tokens, *answer[:30]], 30, 4)
    assert again == answer[30:60]
    repeats = len(answer) - len(set(answer)) > 20
    assert repeats, "a tiny greedy model runs into a cycle, which the lookup finds"
    assert steps < 25


def test_rows_with_penalties_are_not_drafted_for(run: Bench) -> None:
    tokens = [*prompt(12), *prompt(12), *prompt(5)]
    sampling = {"repetition_penalty": 1.3}
    expected = run.generate("plain#0", tokens, 12, **sampling)
    assert drafted(run, "drafted#0", tokens, 12, 4, **sampling) == (expected, 11)


def test_rows_with_drafts_do_not_disturb_others_in_the_step(run: Bench) -> None:
    repeating, other = [*prompt(12), *prompt(12), *prompt(5)], prompt(17, 3)
    expected = run.generate("x#0", repeating, 12), run.generate("y#0", other, 6)
    joins = run.join("a#0", repeating, room=30), run.join("b#0", other, room=30)
    first = run.run(("a#0", len(repeating)), ("b#0", 17), joined=joins)
    out = {"a#0": [first["a#0"]], "b#0": [first["b#0"]]}
    for step in range(5):
        result = run.executor.run(StepPlan(step, ("a#0", "b#0"), (1, 1), max_drafts=(3, 0)))
        for attempt, token in zip(result.attempts, result.token_ids, strict=True):
            out[attempt].append(token)
    assert out["b#0"] == expected[1]
    assert out["a#0"][:12] == expected[0][: len(out["a#0"])]
