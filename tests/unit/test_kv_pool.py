"""How large a node's pool is: what fits, what is shared, and what is refused by the name of its flag."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench.shapes import write_config
from cluster.kv_pool import PROCESS_BYTES, KVPool, needs_of, pool_of
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from core.errors import ConfigError
from engine.hf_config import read_model_config

GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a Llama of 1 B parameters: 64 KiB of KV a token, 4.9 GB of weights in float32."""
    made = tmp_path_factory.mktemp("model")
    write_config("llama-1b", "float32", made)
    return made


def live(folder: Path, nodes: int = 2, rows: int = 64, **settings: object) -> LiveConfig:
    node = NodeSettings(folder, **settings)  # type: ignore[arg-type]
    return LiveConfig(node, slots_of(nodes // 2, nodes - nodes // 2, 0, 512, rows))


def test_nodes_share_fairly_what_weights_and_activations_leave(folder: Path) -> None:
    two, four = (pool_of(live(folder, nodes, memory_utilization=0.8), 64 * GIB) for nodes in (2, 4))
    needs = needs_of(read_model_config(folder), live(folder))
    assert two.num_bytes <= 0.4 * 64 * GIB - needs.total < two.num_bytes + two.layout.bytes_per_block
    assert four.num_bytes <= 0.2 * 64 * GIB - needs.total < four.num_bytes + four.layout.bytes_per_block
    assert 4 * (four.num_bytes + needs.total) <= 0.8 * 64 * GIB


def test_weights_count_in_the_type_that_is_computed_in(folder: Path) -> None:
    config = read_model_config(folder)
    whole, half = (needs_of(config, live(folder, dtype=dtype)) for dtype in ("float32", "float16"))
    assert whole.weights == 2 * half.weights == pytest.approx(4.94e9, rel=0.01)
    assert whole.total == whole.weights + whole.activations + PROCESS_BYTES


def test_a_pool_is_never_larger_than_all_rows_can_fill(folder: Path) -> None:
    pool = pool_of(live(folder, rows=4, max_model_len=1000), 256 * GIB)
    assert pool.num_blocks == 4 * 63
    assert pool.num_full_requests == 4
    assert "4 rows can fill" in pool.sentence()


def test_what_the_operator_says_is_taken_as_it_is(folder: Path) -> None:
    assert pool_of(live(folder, num_kv_blocks=3), GIB).num_blocks == 3
    assert pool_of(live(folder, max_model_len=512, kv_cache_memory_bytes=GIB), 3 * GIB).num_blocks == 1024


def test_the_sentence_names_every_number() -> None:
    from core.kv import KVLayout

    pool = KVPool(KVLayout(4, 2, 64, 16, "float32"), 260, 2048, "why")
    expected = (
        "KV of each node: 4,096 bytes a token; 260 blocks of 16 tokens = 4,160 tokens in 16.2 MiB (why); "
        "2 requests of 2,048 tokens fit"
    )
    assert pool.sentence() == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kv_cache_memory_bytes": 10}, "--kv-cache-memory-bytes (10) must hold at least one block of 1048576 bytes"),
        ({"kv_cache_memory_bytes": GIB // 4}, "raise --kv-cache-memory-bytes or lower --max-model-len"),
        ({"memory_utilization": 0.3}, "raise --gpu-memory-utilization, free memory or lower --max-model-len"),
        ({"kv_cache_memory_bytes": 60 * GIB}, "lower --kv-cache-memory-bytes"),
        ({"num_kv_blocks": 1 << 20}, "lower --num-gpu-blocks-override"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_with_its_flag(folder: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pool_of(live(folder, **settings), 32 * GIB)
    assert len(caught.value.problems) == 1
    assert says in caught.value.problems[0]


def test_a_cluster_elsewhere_is_not_held_against_this_machines_memory(folder: Path) -> None:
    here = live(folder, num_kv_blocks=1 << 20)
    there = replace(here, ray=replace(here.ray, address="10.0.0.1:6379"))
    assert pool_of(there, GIB).num_blocks == 1 << 20
