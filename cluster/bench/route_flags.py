"""The flags of `penstock bench route`."""

import argparse

from scheduler.policies.build import POLICY_NAMES


def add_route_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `penstock bench route`."""
    parser.add_argument("--policy", choices=POLICY_NAMES, default="goodput", help="whose routes are timed")
    parser.add_argument("--routes", type=int, default=4000, metavar="N", help="routes of one repeat")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="the median one counts")
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")
