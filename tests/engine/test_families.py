"""Every family against transformers, on random checkpoints of many shapes, through the executor."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch

from engine.families import FAMILIES, Windows
from engine.hf_config import read_model_config
from engine.rope_config import RopeType
from tests.engine.conftest import Bench, random_model
from tests.engine.test_model import Reference, assert_follows, prompt

Changes = dict[str, object]

ROPES: dict[RopeType, Callable[[Random, int], Changes]] = {
    RopeType.DEFAULT: lambda random, half: {},
    RopeType.LINEAR: lambda random, half: {"factor": random.uniform(1.5, 4.0)},
    RopeType.DYNAMIC: lambda random, half: {"factor": random.uniform(1.5, 4.0)},
    RopeType.LLAMA3: lambda random, half: {
        "factor": random.uniform(2.0, 9.0),
        "low_freq_factor": random.uniform(0.8, 1.2),
        "high_freq_factor": random.uniform(3.0, 5.0),
        "original_max_position_embeddings": random.randint(20, 60),
    },
    RopeType.YARN: lambda random, half: {
        "factor": random.uniform(2.0, 9.0),
        "original_max_position_embeddings": random.randint(20, 60),
        "beta_fast": random.uniform(16.0, 40.0),
        "beta_slow": random.uniform(0.5, 2.0),
        "truncate": random.random() < 0.5,
        **random.choice(({}, {"attention_factor": 1.3}, {"mscale": 0.8, "mscale_all_dim": 1.1})),
    },
    RopeType.LONGROPE: lambda random, half: {
        "short_factor": [random.uniform(1.0, 3.0) for _ in range(half)],
        "long_factor": [random.uniform(3.0, 30.0) for _ in range(half)],
        "original_max_position_embeddings": 128,
        **random.choice(({}, {"factor": 3.0}, {"attention_factor": 1.2})),
    },
}


def rope(kind: RopeType, random: Random, head_dim: int) -> Changes:
    base = {"rope_type": kind.value, "rope_theta": random.choice((500.0, 10_000.0, 1_000_000.0))}
    return {"rope_parameters": base | ROPES[kind](random, head_dim // 2)}


def shapes(family: str, random: Random) -> Changes:
    """A model of a family with sizes that nothing else has, and all that its config can switch switched at random."""
    kv_heads, head_dim = random.choice((1, 2, 3)), random.choice((8, 12, 16, 22))
    heads, layers = kv_heads * random.choice((1, 2, 5)), random.choice((2, 3))
    changes: Changes = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "hidden_size": heads * random.choice((4, 6, 10)),
        "intermediate_size": random.randint(20, 90),
        "num_hidden_layers": layers,
        "vocab_size": random.randint(128, 150),
        "rms_norm_eps": random.choice((1e-6, 1e-5, 1e-3)),
        "tie_word_embeddings": random.random() < 0.5,
        "attention_bias": random.random() < 0.5,
        "mlp_bias": random.random() < 0.5,
        "use_sliding_window": random.random() < 0.7,
        "sliding_window": random.choice((None, 1, 5, 16, 33)),
        "max_window_layers": random.choice((0, 1)),
        "num_local_experts": random.choice((3, 5, 8)),
        "num_experts_per_tok": random.choice((1, 2, 3)),
        "moe_intermediate_size": random.randint(10, 40),
        "norm_topk_prob": random.random() < 0.5,
        "mlp_only_layers": random.choice(([], [0], [layers - 1])),
        "decoder_sparse_step": random.choice((1, 1, 2)),
    }
    changes |= rope(random.choice(list(RopeType)), random, head_dim)
    if FAMILIES[family].windows is Windows.NONE:
        del changes["sliding_window"]  # the cache of transformers would slide all the same
    return changes


@pytest.fixture
def make(transformers: ModuleType, tmp_path: Path) -> Callable[[str, Changes], Path]:
    """Writes the folder of a family; half of the seeds hold experts as transformers does, not as published."""

    def write(family: str, changes: Changes, seed: int = 0) -> Path:
        model = random_model(transformers, family, changes, seed)
        model.save_pretrained(tmp_path, save_original_format=seed % 2 == 0)
        return tmp_path

    return write


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_shape_of_a_family_agrees_with_transformers(
    family: str, seed: int, dtype: str, make: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    random = Random(f"{family} {seed}")
    folder = make(family, shapes(family, random), seed)
    run, tokens = bench(folder, dtype, random.choice((4, 16))), prompt(random.randint(40, 90), seed)
    out = run.generate("a#0", tokens, 6, chunk=random.choice((7, 16, 1000)))
    logits = torch.cat([each for each in run.logits if len(each)])
    assert_follows(reference, folder, tokens + out[:-1], logits, dtype)
    expected = reference(folder, torch.tensor([tokens + out]), dtype)[0].argmax(-1).tolist()
    assert out == expected[len(tokens) - 1 : -1]


@pytest.mark.parametrize("kind", RopeType)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "qwen3_moe"])
def test_every_rope_agrees_with_transformers_up_to_the_longest_sequence(
    family: str, kind: RopeType, make: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    random = Random(f"{family} {kind}")
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    folder = make(family, changes | {"sliding_window": None} | rope(kind, random, 16))
    longest = read_model_config(folder).max_model_len
    tokens = prompt(min(longest, 300) - 5, 1)
    run = bench(folder, num_blocks=96)
    out = run.generate("a#0", tokens, 5, chunk=64)
    logits = torch.cat([each for each in run.logits if len(each)])
    assert_follows(reference, folder, tokens + out[:-1], logits, "float64")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_family_in_one_step_do_not_disturb_each_other(
    family: str, make: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    random = Random(family)
    folder = make(family, shapes(family, random), 5)
    run = bench(folder, num_blocks=160)
    rows = {f"{length}#0": prompt(length, length) for length in (1, 2, 17, 44, 60)}
    done, out = dict.fromkeys(rows, 0), {row: [] for row in rows}
    run.run(joined=tuple(run.join(row, ids, room=40) for row, ids in rows.items()))
    while min(map(len, out.values())) < 8:
        advances = []
        for row in random.sample(list(rows), random.randint(2, 5)):
            left = len(rows[row]) + len(out[row]) - done[row]
            advances.append((row, random.randint(1, left)))
            done[row] += advances[-1][1]
        for row, token in run.run(*advances).items():
            out[row].append(token)
    for row, tokens in out.items():
        expected = reference(folder, torch.tensor([rows[row] + tokens]), "float64")[0].argmax(-1).tolist()
        assert tokens == expected[len(rows[row]) - 1 : -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_that_transformers_generates(
    family: str, make: Callable[..., Path], bench: Callable[..., Bench], transformers: ModuleType
) -> None:
    """Windows of 1 are left out: the cache of transformers 5.17 keeps everything then, and its answers change."""
    random = Random(f"generate {family}")
    changes = shapes(family, random) | {"eos_token_id": None}
    if "sliding_window" in changes:
        changes["sliding_window"] = random.randint(2, 20)
    folder = make(family, changes, 3)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **eager).eval()
    tokens = prompt(50, 9)
    theirs = model.generate(torch.tensor([tokens]), max_new_tokens=16, do_sample=False)[0, 50:].tolist()
    assert bench(folder, "float32").generate("a#0", tokens, 16) == theirs


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 15, 16, 17])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_any_window_is_served_with_blocks_of_any_size(
    window: int, block_size: int, make: Callable[..., Path], bench: Callable[..., Bench], reference: Reference
) -> None:
    folder, tokens = make("mistral", {"sliding_window": window}), prompt(37, window)
    run = bench(folder, block_size=block_size)
    out = run.generate("a#0", tokens, 5, chunk=10)
    logits = torch.cat([each for each in run.logits if len(each)])
    assert_follows(reference, folder, tokens + out[:-1], logits, "float64")
