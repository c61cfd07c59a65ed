"""The kernels of device memory, as source: generations read and written, blocks gathered, blocks summed up.

The text between the two preludes is what runs on a device, and what tests compile for the host and run there: no kernel
waits for another thread, so running the threads one after the other is the same. Blocks are moved as 16-byte vectors,
neighbouring threads neighbouring vectors, on both sides; a tile is what one thread block has in flight.
"""

from dataclasses import dataclass

from kv_transfer.device import VECTOR_BYTES
from kv_transfer.sum128 import FIRST, PLACE, SECOND, THIRD

NUM_THREADS = 512
VECTORS_PER_THREAD = 8
"""Loads in flight per thread before the first store: 64 KiB a thread block."""

TILE_VECTORS = NUM_THREADS * VECTORS_PER_THREAD

KERNELS = ("read_generations", "write_generations", "gather", "add_sums")

CUDA_PRELUDE = f"""
typedef unsigned long long u64;
typedef long long i64;
typedef ulonglong2 vec;
#define KERNEL extern "C" __global__ void __launch_bounds__({NUM_THREADS})
#define PART static __device__ __forceinline__
#define ADD(pointer, value) atomicAdd(pointer, value)
#define UNROLL _Pragma("unroll")
PART u64 over_warp(u64 value) {{
  for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;
}}
PART int speaks_for_warp() {{ return (threadIdx.x & 31) == 0; }}
"""
HOST_PRELUDE = """
typedef unsigned long long u64;
typedef long long i64;
typedef struct { u64 x, y; } vec;
struct place { unsigned x; } threadIdx, blockIdx, gridDim;
#define KERNEL void
#define PART static inline
#define ADD(pointer, value) (*(pointer) += (value))
#define UNROLL
PART u64 over_warp(u64 value) { return value; }
PART int speaks_for_warp() { return 1; }
"""
"""Every thread is a warp of its own; whoever calls sets the three places."""

BODY = f"""
#define NUM_THREADS {NUM_THREADS}
#define PER_THREAD {VECTORS_PER_THREAD}
#define TILE {TILE_VECTORS}

KERNEL read_generations(const volatile u64 *header, const i64 *blocks, u64 *found, i64 num_blocks) {{
  i64 at = (i64)blockIdx.x * NUM_THREADS + threadIdx.x;
  if (at < num_blocks) found[at] = header[blocks[at]];
}}

KERNEL write_generations(volatile u64 *header, const i64 *blocks, const u64 *generations, i64 num_blocks) {{
  i64 at = (i64)blockIdx.x * NUM_THREADS + threadIdx.x;
  if (at < num_blocks) header[blocks[at]] = generations[at];
}}

KERNEL gather(const vec *source, const i64 *source_blocks, vec *target, const i64 *target_blocks,
              i64 block_vectors, i64 tiles_per_block, i64 num_tiles) {{
  for (i64 tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {{
    i64 column = tile / tiles_per_block;
    i64 start = (tile % tiles_per_block) * TILE + threadIdx.x;
    const vec *from = source + source_blocks[column] * block_vectors;
    vec *to = target + target_blocks[column] * block_vectors;
    vec held[PER_THREAD];
    UNROLL for (int k = 0; k < PER_THREAD; k++) {{
      i64 at = start + k * NUM_THREADS;
      if (at < block_vectors) held[k] = from[at];
    }}
    UNROLL for (int k = 0; k < PER_THREAD; k++) {{
      i64 at = start + k * NUM_THREADS;
      if (at < block_vectors) to[at] = held[k];
    }}
  }}
}}

PART void add_word(u64 word, i64 place, u64 *low, u64 *high) {{
  u64 mixed = word + (u64)(place + 1) * {PLACE:#x}ULL;
  mixed = (mixed ^ (mixed >> 30)) * {FIRST:#x}ULL;
  mixed = (mixed ^ (mixed >> 27)) * {SECOND:#x}ULL;
  mixed ^= mixed >> 31;
  u64 spread = mixed * {THIRD:#x}ULL;
  *low += mixed;
  *high += spread ^ (spread >> 32);
}}

KERNEL add_sums(const vec *blocks, const i64 *block_ids, u64 *sums,
                i64 block_vectors, i64 tiles_per_block, i64 num_tiles) {{
  for (i64 tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {{
    i64 column = tile / tiles_per_block;
    i64 start = (tile % tiles_per_block) * TILE + threadIdx.x;
    const vec *from = blocks + block_ids[column] * block_vectors;
    u64 low = 0, high = 0;
    UNROLL for (int k = 0; k < PER_THREAD; k++) {{
      i64 at = start + k * NUM_THREADS;
      if (at < block_vectors) {{
        vec pair = from[at];
        add_word(pair.x, 2 * at, &low, &high);
        add_word(pair.y, 2 * at + 1, &low, &high);
      }}
    }}
    low = over_warp(low);
    high = over_warp(high);
    if (speaks_for_warp()) {{
      ADD(sums + 2 * column, low);
      ADD(sums + 2 * column + 1, high);
    }}
  }}
}}
"""

CUDA_SOURCE = CUDA_PRELUDE + BODY
HOST_SOURCE = HOST_PRELUDE + BODY


@dataclass(frozen=True, slots=True)
class Tiling:
    """How blocks are cut into tiles, and how many thread blocks take turns with them."""

    block_vectors: int
    tiles_per_block: int
    num_tiles: int
    num_programs: int

    @classmethod
    def of(cls, bytes_per_block: int, num_blocks: int, max_programs: int) -> "Tiling":
        """The tiling of so many blocks. `bytes_per_block` is a multiple of `VECTOR_BYTES`."""
        vectors = bytes_per_block // VECTOR_BYTES
        tiles = -(-vectors // TILE_VECTORS)
        return cls(vectors, tiles, tiles * num_blocks, min(tiles * num_blocks, max_programs))
