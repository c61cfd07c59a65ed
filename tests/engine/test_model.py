"""The model against transformers, on tiny random checkpoints."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch
from torch import Tensor

from core.ids import AttemptId
from core.step import RowGrowth
from engine.model_info import read_model_info
from tests.engine.conftest import VARIANTS, Bench

Reference = Callable[[Path, Tensor, str], Tensor]
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_follows(reference: Reference, folder: Path, tokens: list[int], logits: Tensor, dtype: str) -> None:
    """The last `len(logits)` positions of the reference, teacher-forced with our tokens, equal ours."""
    expected = reference(folder, torch.tensor([tokens]), dtype)[0, -len(logits) :]
    assert (expected - logits).abs().max() < TOLERANCE[dtype] * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_prefill_and_decode_agree_with_transformers(
    name: str, dtype: str, make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make_folder(name), prompt(70)
    run = bench(folder, dtype)
    out = run.generate("a#0", tokens, 6)
    assert_follows(reference, folder, tokens + out[:-1], torch.cat(run.logits), dtype)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 17])
def test_chunked_prefill_agrees_with_transformers(
    chunk: int, make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make_folder("llama, 8 heads on 2"), prompt(21)
    run = bench(folder)
    out = run.generate("a#0", tokens, 3, chunk=chunk)
    logits = torch.cat([each for each in run.logits if len(each)])
    assert_follows(reference, folder, tokens + out[:-1], logits, "float64")


@pytest.mark.parametrize("name", ["llama, llama3", "qwen3"])
def test_rows_of_all_lengths_in_one_step_do_not_disturb_each_other(
    name: str, make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder = make_folder(name)
    run = bench(folder, num_blocks=128)
    prompts = {f"{index}#0": prompt(length, index) for index, length in enumerate((1, 30, 7, 55, 2))}
    early = ("0#0", "1#0", "2#0")
    tokens = {name: list(ids) for name, ids in prompts.items()}
    firsts = run.run(
        *((row, len(prompts[row])) for row in early), joined=tuple(run.join(row, prompts[row]) for row in early)
    )
    late = tuple(run.join(row, prompts[row]) for row in ("3#0", "4#0"))
    mixed = run.run(("3#0", 20), ("0#0", 1), ("4#0", 2), ("1#0", 1), ("2#0", 1), joined=late)
    assert set(mixed) == {"0#0", "1#0", "2#0", "4#0"}, "a row that stops short of its prompt samples nothing"
    last = run.run(("2#0", 1), ("3#0", 35), ("4#0", 1))
    for sampled in (firsts, mixed, last):
        for row, token in sampled.items():
            tokens[row].append(token)
    for row, ids in tokens.items():
        expected = reference(folder, torch.tensor([ids]), "float64")[0].argmax(-1).tolist()
        assert ids[len(prompts[row]) :] == expected[len(prompts[row]) - 1 : -1]


@pytest.mark.parametrize(("block_size", "name"), [(8, "llama, 8 heads on 1"), (16, "qwen3"), (32, "qwen2, odd sizes")])
def test_prompts_at_the_edges_of_blocks_in_random_chunks_agree_with_transformers(
    block_size: int, name: str, make_folder: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, random = make_folder(name), Random(block_size)
    run = bench(folder, block_size=block_size, num_blocks=128)
    lengths = [max(1, blocks * block_size + edge) for blocks in (0, 1, 2, 3) for edge in (-1, 0, 1)]
    prompts = {f"{index}#0": prompt(length, index) for index, length in enumerate(lengths)}
    known, done, out = dict(zip(prompts, lengths, strict=True)), dict.fromkeys(prompts, 0), {row: [] for row in prompts}
    run.run(joined=tuple(run.join(row, ids, room=32) for row, ids in prompts.items()))
    for _ in range(12):
        some = random.sample(list(prompts), 8)
        advances = [
            (row, random.choice((1, known[row] - done[row], random.randint(1, known[row] - done[row])))) for row in some
        ]
        for row, token in run.run(*advances).items():
            out[row].append(token)
        for row, num in advances:
            done[row] += num
            known[row] += done[row] == known[row]
    assert sum(map(len, out.values())) > 40
    for row, tokens in out.items():
        expected = reference(folder, torch.tensor([prompts[row] + tokens]), "float64")[0].argmax(-1).tolist()
        assert tokens == expected[len(prompts[row]) - 1 : -1]


def test_many_decode_rows_give_the_same_logits_as_each_alone(
    make_folder: Callable[..., Path], bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.torch_attention._GROUP_BYTES", {"cpu": 20_000})
    folder = make_folder("llama, 8 heads on 8")
    together, alone = bench(folder, num_blocks=256), bench(folder, num_blocks=256)
    lengths = [3, 40, 8, 21, 4, 5, 33, 12]
    rows = [f"{index}#0" for index in range(len(lengths))]
    joins = tuple(together.join(row, prompt(size, size)) for row, size in zip(rows, lengths, strict=True))
    first = together.run(*zip(rows, lengths, strict=True), joined=joins)
    second = together.run(*((row, 1) for row in rows))
    assert list(second) == rows, "results come in the plan's order"
    for row, size in zip(rows, lengths, strict=True):
        assert alone.generate(row, prompt(size, size), 2) == [first[row], second[row]]
    mine, theirs = torch.cat(together.logits[1:]), torch.cat(alone.logits[1::2])
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    assert (mine - theirs[by_length]).abs().max() < 1e-9


@pytest.mark.parametrize("num_computed", [12, 13, 20])
def test_a_row_continues_from_blocks_copied_from_another_executor(
    num_computed: int, make_folder: Callable[..., Path], bench: Callable[..., Bench]
) -> None:
    folder, tokens = make_folder("qwen2"), prompt(20)
    source, target, whole = bench(folder), bench(folder), bench(folder)
    expected = whole.generate("a#0", tokens, 8)
    first = source.run(("a#0", 20), joined=(source.join("a#0", tokens),))
    known = [*tokens, first["a#0"]]
    join = target.join("a#1", known, num_computed=num_computed)
    for mine, theirs in zip(join.block_ids[: -(-num_computed // 4)], source.tables[AttemptId("a#0")], strict=False):
        size = source.shape.layout.bytes_per_block
        into, start = target.shape.block_offset(mine), source.shape.block_offset(theirs)
        target.slab[into : into + size] = source.slab[start : start + size]
    out = [first["a#0"], *target.run(("a#1", len(known) - num_computed), joined=(join,)).values()]
    while len(out) < 8:
        out += target.run(("a#1", 1)).values()
    assert out == expected
    assert (torch.cat(target.logits) - torch.cat(whole.logits[1:])).abs().max() < 1e-9


def test_tables_grow_while_a_row_runs(make_folder: Callable[..., Path], bench: Callable[..., Bench]) -> None:
    folder, tokens = make_folder("qwen2"), prompt(7)
    grown, whole = bench(folder), bench(folder)
    out = list(grown.run(("a#0", 7), joined=(grown.join("a#0", tokens, room=0),)).values())
    while len(out) < 9:
        needed = (len(tokens) + len(out) - 1) % 4 == 0
        growth = (RowGrowth(AttemptId("a#0"), (grown.free.pop(),), (9,)),) if needed else ()
        out += grown.run(("a#0", 1), grown=growth).values()
    assert out == whole.generate("a#0", tokens, 9)


def test_sharded_and_single_folders_give_the_same_logits(
    make_folder: Callable[..., Path], bench: Callable[..., Bench]
) -> None:
    single, sharded = make_folder("qwen2"), make_folder("qwen2", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    first, second = bench(single), bench(sharded)
    assert first.generate("a#0", prompt(9), 2) == second.generate("a#0", prompt(9), 2)
    assert torch.equal(torch.cat(first.logits), torch.cat(second.logits))


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_computed_in_the_asked_type(
    stored: str,
    make_folder: Callable[..., Path],
    bench: Callable[..., Bench],
    reference: Reference,
    tmp_path: Path,
    transformers: ModuleType,
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(make_folder("qwen3"), dtype=getattr(torch, stored))
    model.save_pretrained(tmp_path)
    assert read_model_info(tmp_path).dtype == stored
    run, tokens = bench(tmp_path), prompt(11)
    out = run.generate("a#0", tokens, 3)
    assert_follows(reference, tmp_path, tokens + out[:-1], torch.cat(run.logits), "float64")
