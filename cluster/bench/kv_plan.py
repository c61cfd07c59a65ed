"""What `penstock bench kv` measures: transports, sizes, layouts, and the handoffs of a real cluster."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.memory import available_memory_bytes
from core.errors import ConfigError
from core.kv import KVLayout

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = (64 * KIB, MIB, 8 * MIB, 64 * MIB, 256 * MIB, GIB)
EMBEDDED, LARGE = "embedded", "llama-8b"

LAYOUTS: Mapping[str, KVLayout] = {
    EMBEDDED: KVLayout(num_layers=4, num_kv_heads=2, head_dim=64, block_size=16, dtype="float32"),
    LARGE: KVLayout(num_layers=32, num_kv_heads=8, head_dim=128, block_size=16, dtype="bfloat16"),
}
"""Blocks of 16 tokens: 64 KiB of the embedded model, 2 MiB of Llama 3 8B."""

HOST_TRANSPORTS = ("shm", "gloo", "nixl")
NIXL, MOONCAKE = "peer nixl", "peer mooncake"
PEERS: Mapping[str, str] = {NIXL: "cluster.bench.arm_nixl", MOONCAKE: "cluster.bench.arm_mooncake"}
"""Other people's libraries, moving the same blocks of their own memory; the modules of their arms."""

PEER_POOL_BYTES = 256 * MIB
"""Far more than a cache holds. Peers are compared up to this size; the larger ones are for what is our own."""

BYTES_A_TURN = 64 * MIB
MAX_TIMES = 20
MEMORY_SHARE = 0.7
POOLS, PEER_POOLS = 3, 6
"""The owner's, the reader's, and the one that memcpy copies from; of ours, and of two peers."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that is measured. Without `is_verified` no digest is computed and none compared."""

    transport: str
    layout: str
    num_bytes: int
    is_scattered: bool
    is_verified: bool

    @property
    def num_blocks(self) -> int:
        """Of one transfer."""
        return self.num_bytes // LAYOUTS[self.layout].bytes_per_block

    @property
    def num_times(self) -> int:
        """How often one turn transfers: small ones more often."""
        return max(1, min(MAX_TIMES, BYTES_A_TURN // self.num_bytes))


@dataclass(frozen=True, slots=True)
class KVPlan:
    """One run. `dropped` are sizes that this machine's memory does not allow. Lengths are of prompts, in tokens."""

    transports: tuple[str, ...]
    layouts: tuple[str, ...]
    sizes: tuple[int, ...]
    dropped: tuple[int, ...]
    repeats: int
    num_threads: int
    peer_pythons: tuple[str, ...]
    peers: tuple[str, ...]
    models: tuple[str, ...]
    lengths: tuple[int, ...]
    num_answered: int
    least_pool_bytes: int

    @property
    def pool_bytes(self) -> int:
        """Of every pool of ours: the largest transfer reads all of it, and small ones find nothing in a cache."""
        return max(*self.sizes, self.least_pool_bytes)

    @property
    def peer_pool_bytes(self) -> int:
        """Of every pool of a peer."""
        return min(self.pool_bytes, PEER_POOL_BYTES)

    def cells(self, layout: str, transports: Sequence[str]) -> list[Cell]:
        """Everything for one layout, in order of size; the transports of equal cells are neighbours."""
        least = LAYOUTS[layout].bytes_per_block
        return [
            Cell(name, layout, size, is_scattered, is_verified)
            for size in self.sizes
            if size >= least
            for is_scattered in (False, True)
            for is_verified in (False, True)
            for name in transports
            if name not in PEERS or (size <= self.peer_pool_bytes and not is_verified)
        ]


def add_kv_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `penstock bench kv`."""
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")
    parser.add_argument(
        "--transport", nargs="+", choices=HOST_TRANSPORTS, default=None, help="only these (default: all that run here)"
    )
    parser.add_argument(
        "--sizes", nargs="+", default=None, metavar="SIZE", help="such as 64KiB 8MiB 1GiB (default: 64KiB to 1GiB)"
    )
    parser.add_argument("--repeats", type=int, default=None, help="of everything (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of every process (default: 1)")
    parser.add_argument("--no-handoff", action="store_true", help="without the handoffs of a real cluster")
    parser.add_argument(
        "--peer-python",
        nargs="+",
        default=(),
        metavar="PATH",
        help="interpreters of environments with nixl or mooncake-transfer-engine (default: only our own is tried)",
    )
    parser.add_argument("--quick", action="store_true", help="small and twice: shows that it works")


def kv_plan(args: argparse.Namespace) -> KVPlan:
    """The flags as a plan. Raises ConfigError with every problem."""
    quick = args.quick
    repeats = args.repeats if args.repeats is not None else 2 if quick else 5
    asked = (
        args.sizes if args.sizes is not None else ["64KiB", "1MiB", "8MiB"] if quick else list(map(size_text, SIZES))
    )
    problems = [
        f"--{name} must be at least 1, not {value}"
        for name, value in (("repeats", repeats), ("threads", args.threads))
        if value < 1
    ]
    sizes = [size for text in asked if (size := _size(text, problems)) is not None]
    budget = available_memory_bytes() * MEMORY_SHARE
    fitting = tuple(sorted({size for size in sizes if _needed_bytes(size) <= budget}))
    if not fitting and not problems:
        problems.append("--sizes: the pools of none of these sizes fit in the memory that is free")
    if problems:
        raise ConfigError(problems)
    return KVPlan(
        transports=tuple(args.transport or HOST_TRANSPORTS),
        layouts=(EMBEDDED,) if quick else (EMBEDDED, LARGE),
        sizes=fitting,
        dropped=tuple(sorted(set(sizes) - set(fitting))),
        repeats=repeats,
        num_threads=args.threads,
        peer_pythons=tuple(args.peer_python),
        peers=tuple(PEERS),
        models=() if args.no_handoff else (EMBEDDED,) if quick else (EMBEDDED, LARGE),
        lengths=(64, 256) if quick else (256, 512, 1024, 1900),
        num_answered=8 if quick else 24,
        least_pool_bytes=16 * MIB if quick or _needed_bytes(PEER_POOL_BYTES) > budget else PEER_POOL_BYTES,
    )


def size_text(num_bytes: int) -> str:
    """Such as `64KiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit and num_bytes % unit == 0:
            return f"{num_bytes // unit}{name}"
    return f"{num_bytes}B"


def _needed_bytes(num_bytes: int) -> int:
    """Memory of all pools together where the largest transfer has so many bytes."""
    return POOLS * num_bytes + PEER_POOLS * min(num_bytes, PEER_POOL_BYTES)


def _size(text: str, problems: list[str]) -> int | None:
    """Bytes of such a text; a multiple of the smallest block, which divides every larger one's size."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        number = text.removesuffix(name)
        if number != text and number.isdecimal() and int(number):
            size = int(number) * unit
            coarsest = max(
                (each.bytes_per_block for each in LAYOUTS.values() if each.bytes_per_block <= size), default=0
            )
            if coarsest and size % coarsest == 0:
                return size
    problems.append(f"--sizes: {text!r} is not a number of KiB, MiB or GiB that whole blocks fill")
    return None
