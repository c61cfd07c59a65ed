"""The flags of `penstock generate` that say how the answer is sampled, named as in vLLM and in OpenAI's interface."""

import argparse

NUMBERS = (
    ("max_tokens", int, "length of the answer"),
    ("min_tokens", int, "no end token, stop token or stop string within so many tokens"),
    ("temperature", float, "0 to 2; 0 is greedy"),
    ("top_k", int, "sample among the k likeliest"),
    ("top_p", float, "sample among the likeliest that have this probability together"),
    ("min_p", float, "sample among those that are at least this likely, beside the likeliest"),
    ("seed", int, "equal seeds give equal answers"),
    ("presence_penalty", float, "-2 to 2, on every token that the answer has already"),
    ("frequency_penalty", float, "-2 to 2, the same times how often"),
    ("repetition_penalty", float, "above 0, at most 2 (1: off), on every token that prompt or answer have already"),
    ("n", int, "answers to the same prompt, 1 to 8"),
    ("logprobs", int, "0 to 20: tell each token's log probability, and so many of the best beside it"),
    ("prompt_logprobs", int, "the same of the prompt's tokens"),
)
"""Fields of a request's sampling that are one number: name, kind, meaning."""


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """What is not given is the server's to choose; whether a value is allowed is the server's to judge."""
    for name, kind, meaning in NUMBERS:
        parser.add_argument(flag_of(name), type=kind, default=None, metavar="NUMBER", help=meaning)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; may be repeated"
    )
    parser.add_argument(
        "--stop-token-ids", type=_ids, default=[], metavar="ID,ID", help="end the answer after any of these tokens"
    )
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="added to the logit of this token, -100 to 100; may be repeated",
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the model's end tokens")


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def _ids(value: str) -> list[int]:
    try:
        return [int(word) for word in value.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be token ids with commas between, not {value[:64]!r}") from error


def _bias(value: str) -> tuple[int, float]:
    token, _, bias = value.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a token id, '=' and a number, not {value[:64]!r}") from error
