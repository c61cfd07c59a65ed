"""Flags of the commands that ask for text over HTTP: `chat` and `run-batch`."""

import argparse

from cluster.batches.config import DEFAULT_MAX_CONCURRENT
from cluster.client_flags import add_client_flags
from cluster.flags import add_cluster_flags

DEFAULT_URL = "http://127.0.0.1:8000/v1"


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """Whom to talk to, and how."""
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the running server (default: {DEFAULT_URL})")
    parser.add_argument("--model", default=None, help="the served model's name (default: the first one served)")
    parser.add_argument("--system-prompt", default=None, metavar="TEXT", help="what stands before the conversation")
    parser.add_argument("-q", "--quick", default=None, metavar="TEXT", help="one message, its answer, and no more")
    parser.add_argument("--max-tokens", type=int, default=None, metavar="N", help="of each answer")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the server's)")
    parser.add_argument("--seed", type=int, default=None, help="equal seeds give equal answers")
    parser.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the model's end tokens")
    add_client_flags(parser)
    parser.set_defaults(run=_chat)


def add_run_batch_flags(parser: argparse.ArgumentParser) -> None:
    """What to answer, by whom."""
    parser.add_argument(
        "-i", "--input-file", required=True, metavar="IN", help="requests, JSON lines as OpenAI's batches"
    )
    parser.add_argument("-o", "--output-file", required=True, metavar="OUT", help="answers, a line each")
    parser.add_argument(
        "--url",
        default=None,
        help="of a running server (default: a cluster is started for this run, by the flags below)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="OUT has answers of an earlier run: go on behind them")
    existing.add_argument("--overwrite", action="store_true", help="OUT may go")
    parser.add_argument(
        "--max-concurrent", type=int, default=DEFAULT_MAX_CONCURRENT, metavar="N", help="requests at once"
    )
    add_client_flags(parser)
    add_cluster_flags(parser)
    parser.set_defaults(run=_run_batch)


def _chat(args: argparse.Namespace) -> int:
    from cluster.chat import run_chat

    return run_chat(args)


def _run_batch(args: argparse.Namespace) -> int:
    from cluster.run_batch import run_batch

    return run_batch(args)
