"""The executor's side of the step contract."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from core.errors import ConfigError, StepFailed
from core.ids import AttemptId
from core.kv import SlabShape
from core.step import RowGrowth, StepPlan
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info
from engine.sampler import SampleLine, sample
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt


@pytest.fixture
def run(make_folder: Callable[..., Path], bench: Callable[..., Bench]) -> Bench:
    return bench(make_folder("qwen2"), "float32")


def header(run: Bench) -> list[int]:
    return np.frombuffer(run.slab, np.uint64, count=run.shape.num_blocks).tolist()


def block_bytes(run: Bench, block: int) -> bytearray:
    return run.slab[run.shape.block_offset(block) : run.shape.block_offset(block + 1)]


def test_generations_of_joined_and_grown_tables_stand_in_the_header(run: Bench) -> None:
    join = replace(run.join("a#0", prompt(8), room=0), generations=(5, 2**40))
    run.run(("a#0", 8), joined=(join,))
    grown = run.free.pop()
    run.run(("a#0", 1), grown=(RowGrowth(AttemptId("a#0"), (grown,), (77,)),))
    assert [header(run)[block] for block in (*join.block_ids, grown)] == [5, 2**40, 77]


def test_sealed_blocks_come_with_the_digest_of_their_bytes_after_the_step(run: Bench) -> None:
    join = run.join("a#0", prompt(10))
    sealed = (join.block_ids[1], join.block_ids[0])
    result = run.executor.run(StepPlan(1, ("a#0",), (10,), joined=(join,), seal=sealed))
    assert result.sealed == sealed
    assert result.digests == tuple(xxhash.xxh3_128_digest(bytes(block_bytes(run, block))) for block in sealed)
    assert result.digests[0] != result.digests[1]


def test_the_unfilled_end_of_a_block_holds_nothing_of_its_last_owner(run: Bench) -> None:
    run.slab[run.shape.blocks_offset :] = b"\xff" * (run.shape.total_bytes - run.shape.blocks_offset)
    join = run.join("a#0", prompt(6))
    (token,) = run.run(("a#0", 6), joined=(join,)).values()
    assert 0 <= token < 128, "NaN that lies beyond a row's tokens never reaches its logits"
    layout = run.shape.layout
    last = np.frombuffer(bytes(block_bytes(run, join.block_ids[1])), np.float32)
    last = last.reshape(layout.num_kv_heads, layout.num_layers, 2, layout.block_size, layout.head_dim)
    assert last[..., :2, :].any()
    assert not last[..., 2:, :].any()


def test_rows_of_different_lengths_read_no_block_but_their_own(run: Bench) -> None:
    run.slab[run.shape.blocks_offset :] = b"\xff" * (run.shape.total_bytes - run.shape.blocks_offset)
    run.free.remove(0)
    joins = (run.join("a#0", prompt(3)), run.join("b#0", prompt(30)))
    run.run(("a#0", 3), ("b#0", 30), joined=joins)
    assert len(run.run(("a#0", 1), ("b#0", 1))) == 2, "what pads the shorter table is masked, and NaN cannot be masked"


def test_two_plans_may_be_made_before_the_first_has_run(run: Bench) -> None:
    join = run.join("a#0", prompt(5))
    plans = [StepPlan(1, ("a#0",), (5,), joined=(join,)), StepPlan(2, ("a#0",), (1,)), StepPlan(3, ("a#0",), (1,))]
    tokens = [token for plan in plans for token in run.executor.run(plan).token_ids]
    assert tokens == run.generate("b#0", prompt(5), 3)


def test_blocks_of_a_row_that_left_serve_another_in_the_same_step(run: Bench) -> None:
    old = run.join("a#0", prompt(9, 1))
    run.run(("a#0", 9), joined=(old,))
    new = replace(run.join("b#0", prompt(9, 2)), block_ids=old.block_ids, generations=(9,) * len(old.block_ids))
    reused = run.run(("b#0", 9), left=("a#0", "unknown#3"), joined=(new,))
    assert reused["b#0"] == run.generate("c#0", prompt(9, 2), 1)[0]


def test_drawn_tokens_are_the_same_alone_and_in_a_batch(run: Bench) -> None:
    sampling = {"temperature": 1.3, "seed": 42, "top_p": 0.95}
    alone = run.generate("a#0", prompt(9), 6, chunk=4, **sampling)
    others = tuple(run.join(f"{seed}#0", prompt(5, seed), temperature=0.7, seed=seed) for seed in range(3))
    again = run.join("b#1", prompt(9), **sampling)
    steps = [run.run(*((f"{seed}#0", 5) for seed in range(3)), ("b#1", 9), joined=(*others, again))]
    steps += [run.run(("b#1", 1), *((f"{seed}#0", 1) for seed in range(3))) for _ in range(5)]
    assert [step["b#1"] for step in steps] == alone
    assert alone != run.generate("d#0", prompt(9), 6, **{**sampling, "seed": 43})


def test_an_attempt_that_starts_again_from_a_token_log_draws_the_rest_of_the_same_stream(run: Bench) -> None:
    sampling = {"temperature": 1.1, "seed": 5, "top_k": 50}
    whole = run.generate("a#0", prompt(9), 8, **sampling)
    assert run.generate("a#1", [*prompt(9), *whole[:3]], 5, chunk=5, **sampling) == whole[3:]
    join = run.join("b#0", prompt(9), **sampling)
    run.run(("b#0", 9), joined=(join,))
    drawn = sample(run.logits[-1], [SampleLine(join.sampling, 9, None)], ())
    assert drawn.token_ids.tolist() == whole[:1], "the place of the sampled token is the key"


def test_a_step_without_rows_changes_rows_only(run: Bench) -> None:
    assert run.run() == {}
    assert run.run(joined=(run.join("a#0", prompt(3)),)) == {}
    assert run.executor.num_rows == 1
    assert run.run(left=("a#0",)) == {}
    assert run.executor.num_rows == 0


@pytest.mark.parametrize(
    ("attempt", "num_tokens", "message"),
    [
        ("ghost#0", 1, "row ghost#0 is not resident"),
        ("a#0", 9, "cannot advance 9 from 0: 6 tokens are known"),
        ("a#0", 0, "cannot advance 0 from 0"),
        ("short#0", 6, "needs blocks for 6 tokens and has 1 of 4"),
    ],
)
def test_a_plan_that_cannot_be_run_names_the_row_and_the_lack(
    run: Bench, attempt: str, num_tokens: int, message: str
) -> None:
    short = run.join("short#0", prompt(6))
    run.run(joined=(run.join("a#0", prompt(6)), replace(short, block_ids=short.block_ids[:1], generations=(1,))))
    with pytest.raises(StepFailed, match=message):
        run.run((attempt, num_tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_computed": 6}, "joins with 6 of 6 tokens computed"),
        ({"token_ids": b"\3\0\0"}, "has 3 bytes of token ids; each takes 4"),
        ({"token_ids": b"\x80\0\0\0", "num_prompt_tokens": 1}, "holds token 128; the vocabulary ends at 127"),
        ({"block_ids": (64,), "generations": (1,)}, "names blocks 64 to 64 of 64"),
        ({"generations": (1,)}, "has 6 blocks and 1 generations"),
        ({"attempt": AttemptId("here#0")}, "resident already"),
        ({"num_prompt_tokens": 7}, "has 7 prompt tokens among 6"),
        ({"copied_from": 64}, "copies block 64 of 64"),
    ],
)
def test_a_row_that_cannot_join_fails_the_step(run: Bench, changes: dict[str, object], message: str) -> None:
    run.run(joined=(run.join("here#0", prompt(4)),))
    with pytest.raises(StepFailed, match=message):
        run.run(joined=(replace(run.join("a#0", prompt(6)), **changes),))


def test_rows_of_a_failed_step_are_forgotten_and_the_others_go_on(run: Bench) -> None:
    bad, good = run.join("bad#0", prompt(6)), run.join("good#0", prompt(6))
    expected = run.generate("same#0", prompt(6), 3)
    tokens = list(run.run(("good#0", 6), ("bad#0", 2), joined=(bad, good)).values())
    with pytest.raises(StepFailed, match="cannot advance 9"):
        run.run(("bad#0", 9), joined=(run.join("beside#0", prompt(3)),))
    with pytest.raises(StepFailed, match="bad#0 is not resident"):
        run.run(("bad#0", 1), joined=(run.join("beside#0", prompt(3)),))
    assert run.executor.num_rows == 1
    tokens += [run.run(("good#0", 1))["good#0"] for _ in range(2)]
    assert tokens == expected


def test_an_error_of_torch_fails_the_step_and_keeps_its_words(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*step: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.executor._model, "forward", exhausted)
    with pytest.raises(StepFailed, match="step 1: CUDA out of memory"):
        run.run(("a#0", 3), joined=(run.join("a#0", prompt(3)),))
    assert run.executor.num_rows == 0


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_warming_up_leaves_no_row_and_no_byte(
    block_size: int, make_folder: Callable[..., Path], bench: Callable[..., Bench]
) -> None:
    run = bench(make_folder("qwen2"), "float32", block_size=block_size)
    run.executor.warm_up()
    assert run.executor.num_rows == 0
    assert not any(run.slab)


def test_dummy_weights_are_the_same_in_every_executor(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("qwen3")
    info = read_model_info(folder, LoadFormat.DUMMY)
    assert info.digest != read_model_info(folder).digest
    shape = SlabShape(info.kv_layout(4, "float32"), 16)
    tokens = []
    for _ in range(2):
        config = ExecutorConfig(folder, load_format=LoadFormat.DUMMY)
        slab = bytearray(shape.total_bytes)
        run = Bench(load_executor(config, slab, shape), shape, list(range(16)), slab, [])
        tokens.append(run.generate("a#0", prompt(9), 5))
        run.executor.close()
    assert tokens[0] == tokens[1]


def test_loading_reports_progress_up_to_the_whole(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("qwen2, tied")
    shape = SlabShape(read_model_info(folder).kv_layout(4, "float32"), 4)
    seen: list[tuple[int, int]] = []
    load_executor(ExecutorConfig(folder), bytearray(shape.total_bytes), shape, lambda *each: seen.append(each)).close()
    assert seen[-1][0] == seen[-1][1] == read_model_info(folder).weights_bytes
    assert seen == sorted(seen)


def test_a_slab_on_another_device_is_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("qwen2")
    shape = SlabShape(read_model_info(folder).kv_layout(4, "float32"), 4)
    slab = torch.empty(shape.total_bytes, dtype=torch.uint8, device="meta")
    with pytest.raises(ConfigError, match="the KV slab lies on 'meta' and the executor's device is 'cpu'"):
        load_executor(ExecutorConfig(folder), slab, shape)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        ({"dtype": "int8"}, {}, "dtype 'int8' is unknown"),
        ({"dtype": "float64"}, {}, "dtype 'float32' must equal the executor's dtype 'float64'"),
        (
            {"dtype": "bfloat16"},
            {"dtype": "bfloat16"},
            "is several times slower than float32 on a CPU; use 'float32' there",
        ),
        ({"device": "tpu"}, {}, "device 'tpu' is not supported"),
        ({"num_threads": 0}, {}, "num_threads must be at least 1, got 0"),
        ({}, {"num_layers": 3, "head_dim": 4}, "num_layers 3 and the model 2\n.*head_dim 4 and the model 8"),
    ],
)
def test_an_executor_that_cannot_work_is_refused_by_name(
    config: dict[str, object], layout: dict[str, object], message: str, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder("qwen2")
    shape = SlabShape(replace(read_model_info(folder).kv_layout(4, "float32"), **layout), 4)
    with pytest.raises(ConfigError, match=message):
        load_executor(ExecutorConfig(folder, **config), bytearray(shape.total_bytes), shape)
