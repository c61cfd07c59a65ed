"""Flags of `penstock bench serve`."""

import argparse

from cluster.client_flags import add_client_flags
from cluster.workload_flags import add_workload_flags


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Whom, with what, for how long."""
    parser.add_argument("--address", default="127.0.0.1:50051", help="of the running server")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one answer")
    parser.add_argument("--no-slo", action="store_true", help="count by the SLO, but do not tell it to the server")
    parser.add_argument("--node-hour-price", type=float, default=0.0, metavar="PRICE", help="for the cost of tokens")
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and every request here")
    parser.add_argument("--plot", metavar="FILE.png", default=None, help="draw it (needs the extra `tune`)")
    add_workload_flags(parser)
    add_client_flags(parser)
