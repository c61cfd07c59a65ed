"""`penstock generate`: one prompt to a running server, the answer on standard output as it comes."""

import argparse
import sys

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import CallFailed, Client
from core.errors import InvalidRequest


def generate(args: argparse.Namespace) -> int:
    """Runs the command; its exit status."""
    request = _request(args)
    with Client(args.address) as client:
        try:
            last = _print_answer(client, request, args.timeout)
        except CallFailed as error:
            return _fail(error, args.address)
    if last is not None and args.timing:
        print_timing(last)
    return 0


def _request(args: argparse.Namespace) -> pb.GenerateRequest:
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    request = pb.GenerateRequest(model=args.model, text=text, chat=not args.raw)
    for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"):
        value = getattr(args, name)
        if value is not None:
            _set(request.sampling, name, value)
    request.sampling.ignore_eos = args.ignore_eos
    return request


def _set(sampling: pb.SamplingParams, name: str, value: float) -> None:
    """What fits into the message is the server's to judge; what does not is told by its flag."""
    try:
        setattr(sampling, name, value)
    except ValueError as error:
        flag = f"--{name.replace('_', '-')}"
        raise InvalidRequest(f"{flag} must be a number of at most 64 bits, not {str(value)[:64]}") from error


def _print_answer(client: Client, request: pb.GenerateRequest, timeout_s: float) -> pb.GenerateResponse | None:
    last = None
    try:
        for last in client.generate(request, timeout_s):
            sys.stdout.write(last.text)
            sys.stdout.flush()
    finally:
        if last is not None:
            print(flush=True)
    return last


def print_timing(response: pb.GenerateResponse) -> None:
    """The ledger of an answer, in milliseconds, on standard error."""
    timing = response.timing
    parts = ("admit", "queue_prefill", "prefill", "reserve", "handoff", "queue_decode", "decode", "unaccounted", "wall")
    words = [f"{name} {getattr(timing, name + '_s') * 1000:.1f}" for name in parts]
    usage = response.usage
    tokens = f"{usage.prompt_tokens} prompt and {usage.completion_tokens} answer tokens"
    print(f"{response.finish_reason}; {tokens}; ms: {', '.join(words)}", file=sys.stderr)


def _fail(error: CallFailed, address: str) -> int:
    print(f"penstock: error ({error.code}): {error.message}", file=sys.stderr)
    if error.status is grpc.StatusCode.UNAVAILABLE and error.code == "unavailable":
        print(f"penstock: next: is a server running at {address}? start one: penstock serve", file=sys.stderr)
    elif error.code == "unsupported_parameter":
        print("penstock: next: try again with --raw", file=sys.stderr)
    elif error.retry_after_s is not None:
        print(f"penstock: next: try again in {error.retry_after_s:g} s", file=sys.stderr)
    return 1
