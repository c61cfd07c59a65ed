"""Flags of a simulated fleet, and what they mean."""

import argparse
from math import isfinite
from pathlib import Path

from cluster.workload_flags import add_workload_flags
from core.kv import DTYPE_BYTES

POLICIES = ("goodput", "prefix_aware", "least_loaded", "round_robin")


def add_fleet_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that makes a fleet and its load, but for the layout."""
    add_workload_flags(parser)
    nodes = parser.add_argument_group("nodes")
    nodes.add_argument("--gpu", default=None, metavar="NAME", help="A100, H100 (default), H200, B200, L40S: a roofline")
    nodes.add_argument(
        "--model-shape",
        default=None,
        metavar="NAME",
        help="llama-3-8b (default), llama-3-70b, llama-2-70b, opt-13b, opt-66b, opt-175b, bloom-176b, or a folder",
    )
    nodes.add_argument(
        "--cost-table",
        default=None,
        metavar="FILE",
        help="step times from `penstock profile`, DistServe's fits or Splitwise's CSV instead of a roofline",
    )
    nodes.add_argument(
        "--beside-table",
        default=None,
        metavar="FILE",
        help="from `penstock profile` while the machine's other nodes did the same: for steps that begin while another "
        "node runs one",
    )
    nodes.add_argument("--cost-model", default="", metavar="NAME", help="which model of the cost table")
    nodes.add_argument("--cost-hardware", default="", metavar="NAME", help="which hardware of the cost table")
    nodes.add_argument(
        "--token-curve", choices=("measured", "published"), default="measured", help="how Splitwise's CSV is read"
    )
    nodes.add_argument("--tp", type=int, default=None, metavar="N", help="GPUs of a node, tensor parallel")
    nodes.add_argument("--pp", type=int, default=1, metavar="N", help="pipeline stages (DistServe's fits)")
    nodes.add_argument("--prefill-tp", type=int, default=None, metavar="N", help="of prefill nodes, where it differs")
    nodes.add_argument("--prefill-pp", type=int, default=None, metavar="N", help="of prefill nodes, where it differs")
    nodes.add_argument(
        "--mfu", type=float, default=0.5, metavar="SHARE", help="of the GPU's arithmetic that is reached"
    )
    nodes.add_argument("--mbu", type=float, default=0.7, metavar="SHARE", help="of its bandwidth that is reached")
    nodes.add_argument("--step-overhead", type=float, default=0.0, metavar="SECONDS", help="added to every step")
    nodes.add_argument(
        "--row-overhead", type=float, default=0.0, metavar="SECONDS", help="added for each row and chunk (cost tables)"
    )
    nodes.add_argument("--weight-bytes", type=float, default=2.0, metavar="N", help="per weight; 1: fp8")
    nodes.add_argument("--kv-dtype", choices=tuple(DTYPE_BYTES), default="bfloat16")
    nodes.add_argument(
        "--kv-tokens", type=int, default=None, metavar="N", help="KV pool of a node (default: what fits)"
    )
    nodes.add_argument("--block-size", type=int, default=64, metavar="TOKENS", help="of a KV block")
    nodes.add_argument("--chunk", type=int, default=None, metavar="TOKENS", help="prompt tokens of a mixed node's step")
    nodes.add_argument("--prefill-chunk", type=int, default=8192, metavar="TOKENS", help="the same of a prefill node")
    nodes.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="rows that decode in one step")
    nodes.add_argument("--max-model-len", type=int, default=None, metavar="N", help="longer requests are left out")
    nodes.add_argument(
        "--link-gb-s", type=float, default=25.0, metavar="GB/S", help="of a node's network card, each way"
    )
    nodes.add_argument("--link-latency", type=float, default=0.0002, metavar="SECONDS", help="of a fetch")
    nodes.add_argument(
        "--message-latency", type=float, default=0.0002, metavar="SECONDS", help="of a message between processes"
    )
    nodes.add_argument("--gpu-hour-price", type=float, default=0.0, metavar="PRICE", help="for the cost of tokens")
    nodes.add_argument("--policy", choices=POLICIES, default="goodput")
    nodes.add_argument(
        "--no-refusals", action="store_true", help="queue what cannot meet its SLO instead of turning it away"
    )


FEW_NODES = 16
"""Up to so many nodes a simulation replays by itself; with 32 it would take five times as long."""


def add_simulate_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `penstock simulate`."""
    parser.add_argument(
        "--layout", default="adaptive", metavar="ARM", help="aggregated | disaggregated:P:D | adaptive (default)"
    )
    parser.add_argument(
        "--nodes", type=int, default=None, metavar="N", help="how many (default: as --layout says, or 2)"
    )
    parser.add_argument(
        "--replays",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"adaptive: correct plans by replays of the last arrivals, as live (default: up to {FEW_NODES} nodes)",
    )
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and every request here")
    parser.add_argument("--plot", metavar="FILE.png", default=None, help="draw it (needs the extra `tune`)")
    add_fleet_flags(parser)


def add_tune_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `penstock tune`."""
    parser.add_argument("--gpus", type=int, default=None, metavar="N", help="to divide into nodes (default: 4 nodes')")
    parser.add_argument(
        "--tp-sizes", nargs="+", default=None, metavar="N", help="GPUs of a node to try; all: the table's"
    )
    chunks = [256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--chunks", type=int, nargs="+", default=chunks, metavar="TOKENS", help="to try on mixed nodes")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=None, metavar="RPS", help="to try (default: by formula)"
    )
    parser.add_argument("--slos", nargs="+", default=None, metavar="TTFT:TPOT", help="several, in seconds")
    parser.add_argument("--target", type=float, default=0.9, metavar="SHARE", help="of requests that must meet the SLO")
    parser.add_argument("--keep", type=int, default=6, metavar="N", help="disaggregated layouts to simulate")
    parser.add_argument("--adaptive", action="store_true", help="simulate the adaptive layout beside the fixed ones")
    parser.add_argument("--quick", action="store_true", help="do not search the best ones again in long runs")
    parser.add_argument("--json", metavar="FILE", default=None, help="write the whole surface here")
    parser.add_argument("--plot", metavar="FILE.png", default=None, help="draw it (needs the extra `tune`)")
    add_fleet_flags(parser)


def fleet_problems(args: argparse.Namespace) -> list[str]:
    """What the numbers alone show to be wrong."""
    whole = (
        "tp",
        "pp",
        "prefill_tp",
        "prefill_pp",
        "kv_tokens",
        "block_size",
        "chunk",
        "prefill_chunk",
        "max_num_seqs",
    )
    found = [
        f"--{name.replace('_', '-')} must be at least 1, not {value}"
        for name in (*whole, "max_model_len")
        if (value := getattr(args, name)) is not None and value < 1
    ]
    for name in ("link_gb_s", "weight_bytes"):
        if not (isfinite(getattr(args, name)) and getattr(args, name) > 0):
            found.append(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name):g}")
    for name in ("link_latency", "message_latency", "step_overhead", "row_overhead", "gpu_hour_price"):
        if not (isfinite(getattr(args, name)) and getattr(args, name) >= 0):
            found.append(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(args, name):g}")
    if args.cost_table is not None and args.gpu is not None:
        found.append("--gpu and --cost-table contradict each other: step times come from one of them")
    for name in ("cost_table", "beside_table"):
        if (path := getattr(args, name)) is not None and not Path(path).expanduser().is_file():
            found.append(f"--{name.replace('_', '-')} {path}: there is no such file")
    if args.beside_table is not None and args.cost_table is None:
        found.append("--beside-table belongs to a --cost-table of the same model")
    return found
