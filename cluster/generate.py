"""`penstock generate`: one prompt to a running server, its answers on standard output."""

import argparse
import sys
from collections.abc import Iterable

import grpc
from google.protobuf.descriptor import FieldDescriptor

from cluster.answers import Answers, print_timing
from cluster.api.v1 import inference_pb2 as pb
from cluster.client_flags import credentials
from cluster.gateway.client import CallFailed, Client
from cluster.sampling_flags import NUMBERS, flag_of
from core.errors import InvalidRequest


def generate(args: argparse.Namespace) -> int:
    """Runs the command; its exit status."""
    request = _request(args)
    answers = Answers(request.sampling.n)
    with Client(args.address, credentials(args)) as client:
        try:
            _print_answers(client.generate(request, args.timeout), answers)
        except CallFailed as error:
            return _fail(error, args.address)
    if answers.last is not None and args.timing:
        print_timing(answers.last)
    return 0


def _print_answers(responses: Iterable[pb.GenerateResponse], answers: Answers) -> None:
    try:
        for response in responses:
            answers.take(response)
    finally:
        answers.close()


def _request(args: argparse.Namespace) -> pb.GenerateRequest:
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    return pb.GenerateRequest(model=args.model, text=text, chat=not args.raw, sampling=_sampling(args))


def _sampling(args: argparse.Namespace) -> pb.SamplingParams:
    sampling = pb.SamplingParams(ignore_eos=args.ignore_eos)
    fields = {name: getattr(args, name) for name, _, _ in NUMBERS}
    fields |= {"stop": args.stop, "stop_token_ids": args.stop_token_ids, "logit_bias": dict(args.logit_bias)}
    for name, value in fields.items():
        if value is not None:
            sampling.MergeFrom(_field(name, value))
    return sampling


def _field(name: str, value: object) -> pb.SamplingParams:
    """What fits into the message is the server's to judge; what does not is told by its flag."""
    try:
        return pb.SamplingParams(**{name: value})  # type: ignore[arg-type]
    except ValueError as error:
        if name == "stop":
            raise InvalidRequest("--stop must be Unicode text") from error
        is_short = pb.SamplingParams.DESCRIPTOR.fields_by_name[name].cpp_type == FieldDescriptor.CPPTYPE_INT32
        problem = f"must be a number of at most {32 if is_short else 64} bits, not {str(value)[:64]}"
        raise InvalidRequest(f"{flag_of(name)} {problem}") from error


def _fail(error: CallFailed, address: str) -> int:
    print(f"penstock: error ({error.code}): {error.message}", file=sys.stderr)
    if error.status is grpc.StatusCode.UNAVAILABLE and error.code == "unavailable":
        print(f"penstock: next: is a server running at {address}? start one: penstock serve", file=sys.stderr)
    elif error.code == "unsupported_parameter":
        print("penstock: next: try again with --raw", file=sys.stderr)
    elif error.retry_after_s is not None:
        print(f"penstock: next: try again in {error.retry_after_s:g} s", file=sys.stderr)
    return 1
