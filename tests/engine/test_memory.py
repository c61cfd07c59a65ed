"""The KV memory over a caller's bytes."""

import mmap

import numpy as np
import pytest
import torch
import xxhash

from core.errors import ConfigError
from core.kv import KVLayout, SlabShape
from engine.memory import KVMemory, Part

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=4, block_size=5, dtype="float32")
SHAPE = SlabShape(LAYOUT, 6)


def test_a_block_is_one_range_of_bytes_with_heads_first() -> None:
    slab = bytearray(SHAPE.total_bytes)
    memory = KVMemory(slab, SHAPE)
    memory.blocks[4, 1, 2, 1, 3] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = np.frombuffer(slab, np.float32, offset=SHAPE.block_offset(4), count=LAYOUT.bytes_per_block // 4)
    assert found.reshape(2, 3, 2, 5, 4)[1, 2, 1, 3].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert memory.digests((4,))[0] == xxhash.xxh3_128_digest(slab[SHAPE.block_offset(4) : SHAPE.block_offset(5)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_written_tokens_are_gathered_by_page(dtype: str) -> None:
    layout = KVLayout(3, 2, 4, 5, dtype)
    shape = SlabShape(layout, 6)
    memory = KVMemory(bytearray(shape.total_bytes), shape)
    keys, values = torch.randn(2, 7, 2, 4).to(memory.dtype)
    positions = torch.arange(7)
    table = torch.tensor([[5, 2]])
    memory.write(1, memory.token_rows(table[0, positions // 5], positions % 5), keys, values)
    got = torch.empty(2, 4, 20, dtype=memory.dtype)
    for part in Part:
        memory.gather(1, part, memory.page_rows(table).flatten(), got[part])
    contexts = got.view(2, 2, 10, 4)
    assert torch.equal(contexts[0, :, :7], keys.transpose(0, 1))
    assert torch.equal(contexts[1, :, :7], values.transpose(0, 1))
    assert not memory.blocks[:, :, [0, 2]].any()
    assert not contexts[:, :, 7:].any()


def test_starting_blocks_writes_generations_and_clears_those_to_be_filled() -> None:
    slab = bytearray(b"\xff" * SHAPE.total_bytes)
    memory = KVMemory(slab, SHAPE)
    memory.start_blocks((3, 1, 5), (7, 2**63 + 1, 9), num_filled=1)
    header = np.frombuffer(slab, np.uint64, count=6).tolist()
    assert (header[3], header[1], header[5]) == (7, 2**63 + 1, 9)
    blocks = [slab[SHAPE.block_offset(each) : SHAPE.block_offset(each + 1)] for each in range(6)]
    assert [bytes(block).strip(b"\0") == b"" for block in blocks] == [False, True, False, False, False, True]


def test_an_mmap_closes_only_after_the_memory_let_go() -> None:
    mapped = mmap.mmap(-1, SHAPE.total_bytes)
    memory = KVMemory(memoryview(mapped), SHAPE)
    with pytest.raises(BufferError):
        mapped.close()
    memory.close()
    memory.close()
    mapped.close()


@pytest.mark.parametrize(
    ("slab", "shape", "message"),
    [
        (bytes(SHAPE.total_bytes), SHAPE, "not writable"),
        (bytearray(100), SHAPE, f"has 100 bytes of torch.uint8; 6 blocks need {SHAPE.total_bytes} of uint8"),
        (torch.zeros(SHAPE.total_bytes), SHAPE, "bytes of torch.float32"),
        (bytearray(SHAPE.total_bytes), SlabShape(KVLayout(3, 2, 4, 5, "float32", 0, 2), 6), "tp_size 2"),
    ],
)
def test_a_slab_that_does_not_fit_is_refused(slab: bytes, shape: SlabShape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KVMemory(memoryview(slab) if isinstance(slab, bytes) else slab, shape)
