"""Flags of `penstock bench soak`."""

import argparse


def add_soak_flags(parser: argparse.ArgumentParser) -> None:
    """How long, how busy, and where to."""
    parser.add_argument("--minutes", type=float, default=60.0, help="of load, the warming up included")
    parser.add_argument(
        "--warm-up-minutes", type=float, default=None, help="not counted (default: a fifth, at most 10)"
    )
    parser.add_argument(
        "--rate", type=float, default=2.0, metavar="PER_SECOND", help="requests; low: beside other work"
    )
    parser.add_argument("--sample-seconds", type=float, default=10.0, help="between two looks at every process")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="niceness of this process and what it starts (among sessions, as nodes are, Linux may not count it)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")
