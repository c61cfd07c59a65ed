"""The executor on a GPU against the same executor on the CPU, which other tests compare with transformers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.ids import AttemptId
from core.step import StepPlan
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt

pytestmark = pytest.mark.gpu

LENGTHS = (1, 15, 16, 17, 63, 130)
CLOSE = 1e-4
"""Of the largest value, in float32."""
NEAR_TIE = 1e-4
"""Where the two best logits are closer than this, rounding may choose either."""


def greedy(run: Bench, lengths: Sequence[int] = LENGTHS, num_tokens: int = 24) -> list[list[int]]:
    """Answers of rows that are prefilled together, half of them in two chunks, and decoded together."""
    rows = {f"{length}#0": prompt(length, length) for length in lengths}
    first = {row: len(ids) if len(ids) % 2 else len(ids) // 2 for row, ids in rows.items()}
    out: dict[str, list[int]] = {row: [] for row in rows}
    steps: list[tuple[tuple[str, int], ...]] = [tuple(first.items())]
    steps.append(tuple((row, len(ids) - first[row] or 1) for row, ids in rows.items()))
    joined = tuple(run.join(row, ids, room=num_tokens) for row, ids in rows.items())
    while any(len(tokens) < num_tokens for tokens in out.values()):
        advances = steps.pop(0) if steps else tuple((row, 1) for row in rows if len(out[row]) < num_tokens)
        for row, token in run.run(*advances, joined=joined).items():
            out[row].append(token)
        joined = ()
    run.run(left=tuple(map(AttemptId, rows)))
    return list(out.values())


def logits_after(run: Bench, tokens: list[int], name: str = "logits#0", chunk: int = 1000) -> Tensor:
    """In float32 on the CPU. Shapes: [vocab]."""
    run.generate(name, tokens, 1, chunk=chunk)
    return run.logits[-1][0].float().cpu()


def assert_same_up_to_near_ties(cpu: Bench, length: int, found: list[int], expected: list[int]) -> None:
    differing = [index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    if differing:
        best = logits_after(cpu, prompt(length, length) + expected[: differing[0]]).topk(2).values
        assert best[0] - best[1] < NEAR_TIE, f"prompt of {length}: {found} instead of {expected}"


def test_greedy_answers_in_float32_are_those_of_the_cpu(gpu: Bench, cpu: Bench) -> None:
    expected = greedy(cpu)
    assert len({tuple(tokens) for tokens in expected}) == len(LENGTHS)
    for length, mine, theirs in zip(LENGTHS, greedy(gpu), expected, strict=True):
        assert_same_up_to_near_ties(cpu, length, mine, theirs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", CLOSE), ("float16", 0.01), ("bfloat16", 0.05)])
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_are_close_to_those_of_the_cpu_in_float32(
    length: int, dtype: str, tolerance: float, make: Callable[..., Bench], device: str, cpu: Bench
) -> None:
    tokens = prompt(length, length)
    expected, found = logits_after(cpu, tokens), logits_after(make(device, dtype), tokens)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(chunk: int, gpu: Bench) -> None:
    tokens = prompt(130)
    whole = logits_after(gpu, tokens)
    assert (logits_after(gpu, tokens, "chunks#0", chunk) - whole).abs().max() < CLOSE * whole.abs().max()


def test_many_rows_give_the_logits_of_each_alone(gpu: Bench) -> None:
    rows = {f"{index}#0": prompt(1 + 5 * index, index) for index in range(12)}
    joined = tuple(gpu.join(row, ids, room=1) for row, ids in rows.items())
    first = gpu.run(*((row, len(ids)) for row, ids in rows.items()), joined=joined)
    gpu.run(*((row, 1) for row in rows))
    together = gpu.logits[-1].cpu()
    gpu.run(left=tuple(map(AttemptId, rows)))
    for line, (row, ids) in enumerate(rows.items()):
        alone = logits_after(gpu, [*ids, first[row]], f"alone{row}")
        gpu.free += gpu.tables[AttemptId(f"alone{row}")]
        assert (together[line] - alone).abs().max() < CLOSE * alone.abs().max()


def test_keys_and_values_and_generations_lie_in_the_slab_on_the_device(gpu: Bench, cpu: Bench) -> None:
    assert isinstance(gpu.slab, Tensor) and gpu.slab.device.type == gpu.executor._memory.device.type
    assert gpu.executor._memory.blocks.data_ptr() == gpu.slab.data_ptr() + gpu.shape.blocks_offset
    for run in (gpu, cpu):
        run.run(("a#0", 40), joined=(run.join("a#0", prompt(40)),))
    assert gpu.tables == cpu.tables
    start = gpu.shape.blocks_offset
    assert torch.equal(gpu.slab[:start].cpu(), cpu.slab[:start])
    mine, theirs = gpu.slab[start:].cpu().view(torch.float32), cpu.slab[start:].view(torch.float32)
    assert theirs.any()
    assert (mine - theirs).abs().max() < CLOSE * theirs.abs().max()


def test_a_row_continues_from_blocks_copied_on_the_device(make: Callable[..., Bench], gpu: Bench, device: str) -> None:
    tokens, target = prompt(40), make(device)
    expected = make(device).generate("a#0", tokens, 8)
    first = gpu.run(("a#0", 40), joined=(gpu.join("a#0", tokens),))["a#0"]
    join = target.join("a#1", [*tokens, first], num_computed=40)
    for mine, theirs in zip(reversed(join.block_ids[:3]), reversed(gpu.tables[AttemptId("a#0")][:3]), strict=True):
        target.executor._memory.blocks[mine].copy_(gpu.executor._memory.blocks[theirs])
    out = [first, *target.run(("a#1", 1), joined=(join,)).values()]
    out += [target.run(("a#1", 1))["a#1"] for _ in range(6)]
    assert out == expected


def test_digests_are_those_of_the_bytes_on_the_device(gpu: Bench) -> None:
    xxhash = pytest.importorskip("xxhash", reason="sealing needs xxhash: pip install xxhash")
    join = gpu.join("a#0", prompt(40))
    sealed = join.block_ids[1::-1]
    result = gpu.executor.run(StepPlan(1, (AttemptId("a#0"),), (40,), joined=(join,), seal=sealed))
    ranges = [slice(gpu.shape.block_offset(block), gpu.shape.block_offset(block + 1)) for block in sealed]
    assert result.digests == tuple(xxhash.xxh3_128_digest(gpu.slab[each].cpu().numpy().data) for each in ranges)


def test_warming_up_leaves_no_row_and_no_byte(gpu: Bench) -> None:
    pytest.importorskip("xxhash", reason="warming up seals a block and needs xxhash: pip install xxhash")
    gpu.executor.warm_up()
    assert gpu.executor.num_rows == 0
    assert not gpu.slab.any()


def test_a_row_whose_logits_are_not_finite_fails_and_other_rows_go_on(gpu: Bench) -> None:
    bad, good = gpu.join("bad#0", prompt(40)), gpu.join("good#0", prompt(40, 1))
    gpu.run(("bad#0", 20), ("good#0", 40), joined=(bad, good))
    gpu.executor._memory.blocks[bad.block_ids[0]].fill_(torch.nan)
    result = gpu.executor.run(StepPlan(90, (AttemptId("bad#0"), AttemptId("good#0")), (20, 1)))
    assert (result.failed, result.attempts) == ((AttemptId("bad#0"),), (AttemptId("good#0"),))
    assert list(gpu.run(("good#0", 1))) == ["good#0"]


def test_what_a_block_held_before_never_reaches_its_next_owner(gpu: Bench) -> None:
    expected = gpu.generate("a#0", prompt(35), 6)
    old = gpu.tables[AttemptId("a#0")]
    gpu.executor._memory.blocks.fill_(torch.nan)
    join = replace(gpu.join("b#0", prompt(35)), block_ids=old, generations=(9,) * len(old))
    out = list(gpu.run(("b#0", 35), joined=(join,)).values())
    out += [gpu.run(("b#0", 1))["b#0"] for _ in range(5)]
    assert out == expected
