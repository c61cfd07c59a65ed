"""Rows that begin on the KV of others, and rows that wait outside of the pool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import StepFailed
from core.ids import AttemptId
from core.step import RowGrowth, RowJoin, StepPlan
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt


@pytest.fixture
def run(make_folder: Callable[..., Path], bench: Callable[..., Bench]) -> Bench:
    return bench(make_folder("qwen2"), "float64", num_blocks=128)


def on_top_of(run: Bench, name: str, first: RowJoin, token_ids: list[int], **sampling: object) -> RowJoin:
    """A join that shares the full blocks of `first` and copies the begun one."""
    num_computed = len(token_ids) - 1
    full = num_computed // 4
    join = run.join(name, token_ids, num_computed=num_computed, **sampling)
    source = first.block_ids[full]
    return replace(join, block_ids=first.block_ids[:full] + join.block_ids[full:], copied_from=source)


@pytest.mark.parametrize("num_tokens", [6, 8, 9, 13])
def test_a_row_that_shares_a_prompt_gives_the_tokens_of_one_that_computed_it(run: Bench, num_tokens: int) -> None:
    tokens, sampling = prompt(num_tokens), {"temperature": 1.0, "seed": 9}
    expected = run.generate("alone#0", tokens, 6, **sampling)
    first = run.join("first#0", tokens, **{**sampling, "choice": 1})
    run.run(("first#0", num_tokens), joined=(first,))
    second = on_top_of(run, "second#0", first, tokens, **sampling)
    out = list(run.run(("first#0", 1), ("second#0", 1), joined=(second,)).values())[1:]
    while len(out) < 6:
        out.append(run.run(("first#0", 1), ("second#0", 1))["second#0"])
    assert out == expected


def test_writing_a_copied_block_leaves_its_source_as_it_was(run: Bench) -> None:
    tokens = prompt(6)
    expected = run.generate("alone#0", tokens, 8)
    first = run.join("first#0", tokens)
    (token,) = run.run(("first#0", 6), joined=(first,)).values()
    other = on_top_of(run, "other#0", first, tokens, temperature=1.0, seed=3)
    run.run(("other#0", 1), joined=(other,))
    for _ in range(3):
        run.run(("other#0", 1))
    assert [token, *(run.run(("first#0", 1))["first#0"] for _ in range(7))] == expected


def test_a_copy_holds_nothing_of_what_follows_in_its_source(run: Bench) -> None:
    tokens = prompt(6)
    first = run.join("first#0", tokens)
    run.run(("first#0", 6), joined=(first,))
    run.run(("first#0", 1))
    run.run(joined=(on_top_of(run, "other#0", first, tokens),))
    copied = run.executor._memory.blocks[run.tables[AttemptId("other#0")][1]]
    assert copied[:, :, :, :1].any()
    assert not copied[:, :, :, 1:].any()


def test_a_row_that_was_saved_goes_on_in_other_blocks(run: Bench) -> None:
    tokens, sampling = prompt(9), {"temperature": 1.0, "seed": 4, "repetition_penalty": 1.2}
    expected = run.generate("alone#0", tokens, 8, **sampling)
    out = list(run.run(("a#0", 9), joined=(run.join("a#0", tokens, room=8, **sampling),)).values())
    out += [run.run(("a#0", 1))["a#0"] for _ in range(2)]
    run.run(saved=(AttemptId("a#0"),))
    assert run.executor.num_rows == 0
    for block in run.tables[AttemptId("a#0")]:
        run.executor._memory.blocks[block] = float("nan")
    blocks = tuple(run.free.pop() for _ in range(5))
    back = RowGrowth(AttemptId("a#0"), blocks, (7,) * 5)
    out += run.run(("a#0", 1), restored=(back,)).values()
    out += [run.run(("a#0", 1))["a#0"] for _ in range(4)]
    assert out == expected


def test_blocks_of_a_row_that_is_saved_may_serve_a_row_that_joins_in_the_same_step(run: Bench) -> None:
    tokens = prompt(9)
    expected = run.generate("alone#0", tokens, 3)
    first = run.join("a#0", tokens)
    (token,) = run.run(("a#0", 9), joined=(first,)).values()
    other = replace(run.join("b#0", prompt(9, 1)), block_ids=first.block_ids, generations=(9,) * len(first.block_ids))
    run.run(("b#0", 9), saved=(AttemptId("a#0"),), joined=(other,))
    back = RowGrowth(AttemptId("a#0"), tuple(run.free.pop() for _ in first.block_ids), (3,) * len(first.block_ids))
    out = [token, *run.run(("a#0", 1), left=(AttemptId("b#0"),), restored=(back,)).values()]
    assert [*out, run.run(("a#0", 1))["a#0"]] == expected


def test_a_saved_row_that_left_cannot_come_back(run: Bench) -> None:
    first = run.join("a#0", prompt(5))
    run.run(("a#0", 5), joined=(first,))
    run.run(saved=(AttemptId("a#0"),))
    run.run(left=(AttemptId("a#0"),))
    with pytest.raises(StepFailed, match="a#0 is restored and was not saved"):
        run.run(restored=(RowGrowth(AttemptId("a#0"), first.block_ids, (2,) * len(first.block_ids)),))


def test_a_plan_may_be_launched_before_the_one_before_it_is_collected(run: Bench) -> None:
    sampling = {"temperature": 1.0, "seed": 8, "presence_penalty": 0.7}
    expected = run.generate("alone#0", prompt(9), 5, **sampling), run.generate("other#0", prompt(6, 1), 4)
    a, b = run.join("a#0", prompt(9), **sampling), run.join("b#0", prompt(6, 1))
    plans = [
        StepPlan(1, ("a#0",), (9,), joined=(a,)),
        StepPlan(2, ("a#0", "b#0"), (1, 6), joined=(b,)),
        StepPlan(3, ("a#0", "b#0"), (1, 1)),
        StepPlan(4, ("a#0", "b#0"), (1, 1)),
        StepPlan(5, ("a#0", "b#0"), (1, 1)),
    ]
    out: dict[str, list[int]] = {"a#0": [], "b#0": []}
    running = run.executor.launch(plans[0])
    for plan in (*plans[1:], None):
        ahead = run.executor.launch(plan) if plan else None
        result = running.collect()
        for attempt, token in zip(result.attempts, result.token_ids, strict=True):
            out[attempt].append(token)
        running = ahead
    assert (out["a#0"], out["b#0"]) == expected


def test_a_row_without_finite_logits_fails_alone(run: Bench) -> None:
    expected = run.generate("same#0", prompt(6), 3)
    bad, good = run.join("bad#0", prompt(6)), run.join("good#0", prompt(6))
    tokens = [run.run(("good#0", 6), ("bad#0", 6), joined=(bad, good))["good#0"]]
    run.executor._memory.blocks[bad.block_ids[0]] = float("nan")
    result = run.executor.run(StepPlan(50, ("bad#0", "good#0"), (1, 1)))
    assert (result.failed, result.attempts) == (("bad#0",), ("good#0",))
    assert run.executor.num_rows == 1
    tokens += [*result.token_ids, run.run(("good#0", 1))["good#0"]]
    assert tokens == expected


def test_a_plan_made_before_a_row_failed_runs_without_it(run: Bench) -> None:
    expected = run.generate("same#0", prompt(6), 4)
    bad, good = run.join("bad#0", prompt(6)), run.join("good#0", prompt(6))
    tokens = [run.run(("good#0", 6), ("bad#0", 6), joined=(bad, good))["good#0"]]
    run.executor._memory.blocks[bad.block_ids[0]] = float("nan")
    plans = [StepPlan(step, ("bad#0", "good#0"), (1, 1), max_drafts=(2, 0)) for step in (50, 51)]
    launched = [run.executor.launch(plan) for plan in plans]
    results = [each.collect() for each in launched]
    results.append(run.executor.run(StepPlan(52, ("bad#0", "good#0"), (1, 1))))
    assert [result.failed for result in results] == [("bad#0",)] * 3
    assert [*tokens, *(token for result in results for token in result.token_ids)] == expected
    run.run(left=(AttemptId("bad#0"),))
    with pytest.raises(StepFailed, match="bad#0 is not resident"):
        run.run(("bad#0", 1))
