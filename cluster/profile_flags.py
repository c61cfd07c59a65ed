"""Flags of `penstock profile`."""

import argparse

from core.kv import DTYPE_BYTES


def add_profile_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `penstock profile`."""
    parser.add_argument("model", help="a Hugging Face model folder")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the cost table, JSON")
    parser.add_argument("--dtype", choices=tuple(DTYPE_BYTES), default="float32", help="of weights and KV")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--load-format", choices=("safetensors", "dummy"), default="safetensors", help="dummy: random weights"
    )
    parser.add_argument("--quantization", choices=("none", "int8"), default="none", help="of the weights")
    parser.add_argument("--block-size", type=int, default=16, help="tokens in a KV block")
    parser.add_argument("--num-threads", type=int, default=1, help="compute threads, as `penstock serve` will have")
    parser.add_argument("--repeats", type=int, default=None, help="of each step (default: 5)")
    parser.add_argument("--quick", action="store_true", help="few and short steps: shows that it works")
