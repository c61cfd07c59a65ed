"""Flags of a cluster, named as vLLM names them, and what they mean in our words."""

import argparse
import math
from pathlib import Path

from cluster.live.config import LiveConfig, NodeSettings, RaySettings, slots_of
from cluster.service import EMBEDDED_MODEL, EMBEDDED_NAME, ServiceConfig
from core.errors import ConfigError
from core.kv import DTYPE_BYTES
from kv_transfer.choose import ASKABLE, AUTO
from scheduler.config import SchedulerConfig
from scheduler.policies.build import DEFAULT_POLICY, POLICY_NAMES

DEFAULT_PORT = 50051
MAX_DRAFT_TOKENS = 16
MAX_NODES = 1024
QUANTIZATIONS = ("none", "int8")
UTILIZATION = {"cpu": 0.5, "cuda": 0.9}
"""A host has other work to do; 0.9 is what vLLM takes of a GPU."""


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that makes a cluster: model, layout, engine, launcher."""
    parser.add_argument(
        "model",
        nargs="?",
        default=str(EMBEDDED_MODEL),
        help="a Hugging Face model folder (default: the embedded model)",
    )
    add_scheduler_flags(parser)
    layout = parser.add_argument_group("layout")
    layout.add_argument("--prefill", type=int, default=None, metavar="N", help="nodes that prefill only")
    layout.add_argument("--decode", type=int, default=None, metavar="N", help="nodes that decode only")
    layout.add_argument("--aggregated", type=int, default=None, metavar="N", help="nodes that do both")
    layout.add_argument("--launcher", choices=("ray", "local"), default="ray", help="Ray actors, or plain processes")
    layout.add_argument("--ray-address", default=None, help="join this Ray cluster instead of starting one here")
    layout.add_argument(
        "--ray-placement",
        choices=("pack", "spread"),
        default="pack",
        help="pack: all nodes on one host; spread: each where a host has a place of its group, the custom resource "
        "prefill, decode or aggregated",
    )
    layout.add_argument(
        "--ray-start-timeout", type=float, default=120.0, metavar="SECONDS", help="how long nodes' places may take"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--served-model-name", default=None, help="the name clients use (default: the folder's)")
    engine.add_argument("--dtype", choices=tuple(DTYPE_BYTES), default="float32", help="of weights and KV")
    engine.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: nodes take turns on the GPUs that CUDA_VISIBLE_DEVICES allows, several on one where there are few",
    )
    engine.add_argument("--load-format", choices=("safetensors", "dummy"), default="safetensors")
    engine.add_argument("--max-model-len", type=int, default=None, help="tokens of prompt and answer together")
    engine.add_argument("--block-size", type=int, default=16, help="tokens in a KV block")
    engine.add_argument(
        "--kv-cache-memory-bytes",
        type=int,
        default=None,
        help="KV pool of each node (default: by --gpu-memory-utilization, at most what --max-num-seqs rows can fill)",
    )
    engine.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=None,
        metavar="SHARE",
        help="of the memory that is free at the start, weights included: on a CPU the machine's, for all nodes; "
        f"on GPUs each one's, for its nodes (default: {UTILIZATION['cpu']:g} on a CPU, {UTILIZATION['cuda']:g} on GPU)",
    )
    engine.add_argument(
        "--cost-table", default=None, metavar="FILE", help="from `penstock profile` (default: nodes measure themselves)"
    )
    engine.add_argument("--num-gpu-blocks-override", type=int, default=None, metavar="N", help="KV blocks of each node")
    engine.add_argument("--max-num-seqs", type=int, default=64, help="rows that decode in one step")
    engine.add_argument(
        "--max-num-batched-tokens",
        type=int,
        default=576,
        help="tokens of one step, decode rows counted; prefill gets what --max-num-seqs leaves",
    )
    engine.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="none", help="int8: weights in 8 bits (CPU, float32)"
    )
    engine.add_argument(
        "--num-speculative-tokens",
        type=int,
        default=0,
        metavar="N",
        help="guess up to N further tokens of a row in a step, from its own text; off by itself where it does not pay",
    )
    engine.add_argument(
        "--swap-space", type=float, default=0.25, metavar="GIB", help="host memory of each node for preempted rows"
    )
    layout.add_argument(
        "--kv-transport",
        choices=ASKABLE,
        default=AUTO,
        help="how KV moves between nodes; auto: the best of each pair, measured: the fastest",
    )
    engine.add_argument("--max-steps-in-flight", type=int, choices=(1, 2), default=1, help="2: plan ahead of results")
    engine.add_argument("--num-threads", type=int, default=1, help="compute threads of each node")


def add_scheduler_flags(parser: argparse.ArgumentParser) -> None:
    """How requests are routed, and whether one is turned away for its SLO."""
    scheduler = parser.add_argument_group("scheduler")
    scheduler.add_argument(
        "--policy",
        choices=POLICY_NAMES,
        default=DEFAULT_POLICY,
        help="how requests are routed; goodput: by what is predicted of their TTFT and TPOT (docs/scheduler.md)",
    )
    scheduler.add_argument(
        "--slo-admission",
        choices=("on", "off"),
        default="on",
        help="refuse at once what is predicted to miss its SLO or deadline, with a time to come back",
    )


def add_address_flags(parser: argparse.ArgumentParser, default_port: int = DEFAULT_PORT) -> None:
    """Where the gRPC server listens."""
    parser.add_argument("--host", default="127.0.0.1", help="address that the servers bind")
    parser.add_argument("--grpc-port", type=int, default=default_port, help="0 lets the kernel choose")


def service_config(args: argparse.Namespace) -> ServiceConfig:
    """The flags as configuration. Raises ConfigError with every problem that the flags alone show."""
    problems = _problems(args)
    if problems:
        raise ConfigError(problems)
    prefill, decode, aggregated = _layout(args)
    model = Path(args.model).expanduser().resolve()
    node = NodeSettings(
        model=model,
        dtype=args.dtype,
        load_format=args.load_format,
        device=args.device,
        block_size=args.block_size,
        num_kv_blocks=args.num_gpu_blocks_override,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        memory_utilization=_utilization(args),
        max_model_len=args.max_model_len,
        max_steps_in_flight=args.max_steps_in_flight,
        num_threads=args.num_threads,
        transport=args.kv_transport,
        quantization=args.quantization,
        num_speculative_tokens=args.num_speculative_tokens,
        swap_space_bytes=int(args.swap_space * (1 << 30)),
    )
    budget = prefill_tokens_per_step(args.max_num_batched_tokens, args.max_num_seqs)
    live = LiveConfig(
        node,
        slots_of(prefill, decode, aggregated, budget, args.max_num_seqs),
        launcher=args.launcher,
        ray=RaySettings(
            address=args.ray_address,
            is_spread=args.ray_placement == "spread",
            start_timeout_s=args.ray_start_timeout,
        ),
    )
    embedded = model == EMBEDDED_MODEL
    name = args.served_model_name or (EMBEDDED_NAME if embedded else model.name)
    table = None if args.cost_table is None else Path(args.cost_table).expanduser().resolve()
    scheduler = SchedulerConfig(refuses_unattainable=args.slo_admission == "on")
    return ServiceConfig(live, name, args.host, args.grpc_port, table, scheduler, policy=args.policy)


def _utilization(args: argparse.Namespace) -> float:
    share: float | None = args.gpu_memory_utilization
    return UTILIZATION[args.device] if share is None else share


def prefill_tokens_per_step(max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """vLLM's step budget counts decode rows, ours does not: the one place where they are converted."""
    return max_num_batched_tokens - max_num_seqs


def _layout(args: argparse.Namespace) -> tuple[int, int, int]:
    if args.prefill is None and args.decode is None and args.aggregated is None:
        return 1, 1, 0
    return args.prefill or 0, args.decode or 0, args.aggregated or 0


def _problems(args: argparse.Namespace) -> list[str]:
    found = [
        f"--{name} must be from 0 to {MAX_NODES}, not {value}"
        for name in ("prefill", "decode", "aggregated")
        if (value := getattr(args, name)) is not None and not 0 <= value <= MAX_NODES
    ]
    for flag in ("block_size", "max_num_seqs", "num_threads"):
        if getattr(args, flag) < 1:
            found.append(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    for flag in ("kv_cache_memory_bytes", "num_gpu_blocks_override", "max_model_len"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            found.append(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    if args.max_num_batched_tokens <= args.max_num_seqs:
        found.append(
            f"--max-num-batched-tokens ({args.max_num_batched_tokens}) must exceed --max-num-seqs "
            f"({args.max_num_seqs}): prefill gets the difference"
        )
    if not 0 <= args.num_speculative_tokens <= MAX_DRAFT_TOKENS:
        asked = args.num_speculative_tokens
        found.append(f"--num-speculative-tokens must be from 0 to {MAX_DRAFT_TOKENS}, not {asked}")
    if not 0 <= args.swap_space < math.inf:
        found.append(f"--swap-space must be a number of GiB from 0 on, not {args.swap_space:g}")
    if args.quantization != "none" and (args.dtype != "float32" or args.device != "cpu"):
        found.append(f"--quantization {args.quantization} works on a CPU in float32 only")
    if not 0 < (share := _utilization(args)) <= 1:
        found.append(f"--gpu-memory-utilization must be above 0 and at most 1, not {share:g}")
    if not 0 <= args.grpc_port <= 65535:
        found.append(f"--grpc-port must be from 0 to 65535, not {args.grpc_port}")
    return found + _ray_problems(args)


def _ray_problems(args: argparse.Namespace) -> list[str]:
    found = []
    if not 0 < args.ray_start_timeout < math.inf:
        found.append(f"--ray-start-timeout must be above 0, not {args.ray_start_timeout:g}")
    if args.ray_placement == "spread":
        if args.ray_address is None or args.launcher != "ray":
            found.append("--ray-placement spread needs --ray-address: it is about the hosts of a Ray cluster")
        if args.kv_cache_memory_bytes is None and args.num_gpu_blocks_override is None:
            found.append(
                "--ray-placement spread needs --kv-cache-memory-bytes or --num-gpu-blocks-override: the memory of "
                "other hosts cannot be measured from here"
            )
    return found
