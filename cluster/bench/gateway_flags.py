"""Flags of `penstock bench gateway`."""

import argparse

PEER_MODEL_LEN, MAX_PEER_TOKENS = 1024, 900
"""A peer answers with a real model, the embedded one: its context, and what the prompt leaves of it."""


def add_gateway_flags(parser: argparse.ArgumentParser) -> None:
    """How much of it."""
    parser.add_argument("--streams", type=int, default=64, metavar="N", help="open at once")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="of each stream")
    parser.add_argument("--step-ms", type=float, default=20.0, metavar="MS", help="the mock nodes' time for a token")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="one after the other, for the TTFT")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of every arm, in turn")
    parser.add_argument("--peer-python", metavar="PATH", default=None, help="interpreter of an environment with vLLM")
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")


def flag_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with them."""
    found = [
        f"--{name} must be at least 1, not {getattr(args, name)}"
        for name in ("streams", "tokens", "requests", "repeats")
        if getattr(args, name) < 1
    ]
    if args.peer_python is not None and args.tokens > MAX_PEER_TOKENS:
        found.append(f"--tokens must be at most {MAX_PEER_TOKENS} with --peer-python, not {args.tokens}")
    if not 1 <= args.step_ms <= 10_000:
        found.append(f"--step-ms must be from 1 to 10000, not {args.step_ms:g}")
    return found
