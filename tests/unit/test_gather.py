"""The device kernels' own text, compiled for the host and run thread by thread; and for GPUs where NVRTC is there."""

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kv_transfer.gather import CUDA_SOURCE, KERNELS, NUM_THREADS, TILE_VECTORS, VECTORS_PER_THREAD, Tiling
from kv_transfer.sum128 import as_digests, sum128
from tests.unit.host_kernels import HostKernels

TILE_BYTES = TILE_VECTORS * 16
SIZES = (16, 48, 512, NUM_THREADS * 16 + 32, TILE_BYTES, TILE_BYTES + 16, 2 * TILE_BYTES - 16)

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs a kernel: all threads of all programs, one after the other."""
    return HostKernels(tmp_path_factory.mktemp("gather")).launch


def pool(num_blocks: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, size), np.uint8)


def counts(tiling: Tiling) -> tuple[int, int, int]:
    return tiling.block_vectors, tiling.tiles_per_block, tiling.num_tiles


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_programs", [1, 3, 1000])
def test_scattered_blocks_are_gathered_and_nothing_else_is_written(
    launch: Launch, size: int, max_programs: int
) -> None:
    source, target = pool(9, size, 1), pool(7, size, 2)
    from_ids, to_ids = np.array([8, 0, 3, 4, 7]), np.array([2, 6, 0, 1, 3])
    expected = target.copy()
    expected[to_ids] = source[from_ids]
    tiling = Tiling.of(size, 5, max_programs)
    launch("gather", tiling.num_programs, source, from_ids, target, to_ids, *counts(tiling))
    assert (target == expected).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_programs", [1, 3, 1000])
def test_the_kernel_sums_up_what_the_reference_does(launch: Launch, size: int, max_programs: int) -> None:
    blocks, ids = pool(6, size, 3), np.array([5, 0, 2])
    sums = np.zeros((3, 2), np.uint64)
    tiling = Tiling.of(size, 3, max_programs)
    launch("add_sums", tiling.num_programs, blocks, ids, sums, *counts(tiling))
    assert (sums == sum128(blocks[ids])).all()


def test_generations_are_read_and_written_where_they_belong(launch: Launch) -> None:
    header, ids = np.arange(1000, dtype=np.uint64), np.array(random.Random(1).sample(range(1000), 300))
    found, programs = np.zeros(300, np.uint64), -(-300 // NUM_THREADS)
    launch("read_generations", programs, header, ids, found, 300)
    assert (found == ids).all()
    launch("write_generations", programs, header, ids, np.full(300, 1 << 63, np.uint64), 300)
    assert set(np.flatnonzero(header == 1 << 63)) == set(ids)
    assert (np.delete(header, ids) == np.delete(np.arange(1000), ids)).all()


def test_the_reference_is_what_its_definition_says_in_plain_integers() -> None:
    block, low, high, whole = pool(1, 64, 4), 0, 0, (1 << 64) - 1
    for index in range(8):
        mixed = int.from_bytes(block[0, 8 * index : 8 * index + 8].tobytes(), "little")
        mixed = mixed + (index + 1) * 0x9E3779B97F4A7C15 & whole
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & whole
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & whole
        mixed ^= mixed >> 31
        spread = mixed * 0xD6E8FEB86659FD93 & whole
        low, high = low + mixed & whole, high + (spread ^ spread >> 32) & whole
    assert as_digests(sum128(block)) == (low.to_bytes(8, "little") + high.to_bytes(8, "little"),)


def test_every_flipped_bit_changes_both_halves() -> None:
    block = pool(1, 64, 5)
    damaged = np.repeat(block, 512, axis=0)
    for bit in range(512):
        damaged[bit, bit // 8] ^= 1 << bit % 8
    assert (sum128(damaged) != sum128(block)).all()


def test_ten_thousand_faults_of_many_kinds_are_all_seen() -> None:
    rng, size, missed = random.Random(6), 512, 0
    for _ in range(10_000):
        block = np.frombuffer(rng.randbytes(size), np.uint8).copy()
        damaged, start = block.copy(), rng.randrange(0, size, 8)
        match rng.randrange(5):
            case 0:  # two equal bits in words of the same place in their vectors: what plain sums would miss
                other = (start + 16 * rng.randrange(1, size // 16)) % size
                damaged[[start + 7, other + 7]] ^= 0x80
            case 1:  # two words swapped
                other = (start + 8 * rng.randrange(1, size // 8)) % size
                damaged[start : start + 8], damaged[other : other + 8] = block[other:][:8], block[start:][:8]
            case 2:  # a part that never came
                damaged[start:] = 0
            case 3:  # everything, one vector late
                damaged = np.roll(block, 16)
            case _:  # a few bytes
                for _ in range(rng.randrange(1, 5)):
                    damaged[rng.randrange(size)] ^= rng.randrange(1, 256)
        missed += bool((block != damaged).any() and (sum128(block[None]) == sum128(damaged[None])).all())
    assert missed == 0


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    cupy = pytest.importorskip("cupy", reason="cupy and NVRTC are not installed")
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        pytest.skip(f"cupy and NVRTC are not installed: {error}")
    return cupy.cuda.nvrtc


@pytest.mark.parametrize("card", ["sm_80", "sm_89", "sm_90"])
def test_the_kernels_compile_for_gpus(card: str, nvrtc: Any) -> None:
    """The same text, by the compiler that CuPy uses; it needs no GPU, only NVRTC."""
    program = nvrtc.createProgram(CUDA_SOURCE, "gather.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++14", f"--gpu-architecture={card}"))
    text = nvrtc.getPTX(program).decode()
    assert len(nvrtc.getCUBIN(program)) > 0
    assert all(f".entry {kernel}(" in text for kernel in KERNELS)
    assert len(re.findall(r"ld\.global\.v2\.[ub]64", text)) == 2 * VECTORS_PER_THREAD  # 16 bytes each; copy and sums
    assert len(re.findall(r"st\.global\.v2\.[ub]64", text)) == VECTORS_PER_THREAD
