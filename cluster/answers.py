"""What `penstock generate` prints: answers on standard output, figures on standard error."""

import sys
from collections import defaultdict
from dataclasses import dataclass, field

from cluster.api.v1 import inference_pb2 as pb


@dataclass(slots=True)
class _Answer:
    """One choice, as far as it came."""

    text: str = ""
    ending: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)

    def extend(self, response: pb.GenerateResponse) -> None:
        self.text += response.text
        self.token_ids += response.token_ids
        self.logprobs += response.logprobs
        if response.finish_reason:
            self.ending = ending_of(response)


class Answers:
    """Prints a single answer as it comes; several ones whole, in their order, each below a line with its number.

    Owns: what of each choice has come.
    """

    def __init__(self, num_choices: int) -> None:
        self._num_choices = max(1, num_choices)
        self._num_printed = 0
        self._answers = defaultdict[int, _Answer](_Answer)
        self._prompt_logprobs: list[pb.TokenLogprobs] = []
        self.last: pb.GenerateResponse | None = None

    def take(self, response: pb.GenerateResponse) -> None:
        """A response of the call."""
        self.last = response
        self._prompt_logprobs += response.prompt_logprobs
        self._answers[response.choice].extend(response)
        if self._num_choices == 1:
            sys.stdout.write(response.text)
            sys.stdout.flush()
            return
        while self._num_printed < self._num_choices and self._answers[self._num_printed].ending:
            self._print_next()

    def close(self) -> None:
        """What is left of a call that is over, and the scores that were asked for."""
        if self.last is None:
            return
        if self._num_choices == 1:
            print(flush=True)
        else:
            while self._num_printed < self._num_choices:
                self._print_next()
        self._print_scores()

    def _print_scores(self) -> None:
        for place, score in enumerate(self._prompt_logprobs, 1):
            _print_score(f"prompt token {place}", score)
        for choice, answer in sorted(self._answers.items()):
            name = "token" if self._num_choices == 1 else f"choice {choice} token"
            for place, score in enumerate(answer.logprobs):
                _print_score(f"{name} {place}: {answer.token_ids[place]}", score)

    def _print_next(self) -> None:
        answer = self._answers[self._num_printed]
        print(f"── choice {self._num_printed}: {answer.ending or 'broken off'} ──\n{answer.text}", flush=True)
        self._num_printed += 1


def ending_of(response: pb.GenerateResponse) -> str:
    """Why an answer ended, and by which stop string."""
    return response.finish_reason + (f" at {response.stop_reason!r}" if response.stop_reason else "")


def print_timing(response: pb.GenerateResponse) -> None:
    """The ledger of a call, in milliseconds, on standard error."""
    timing = response.timing
    parts = ("admit", "queue_prefill", "prefill", "reserve", "handoff", "queue_decode", "decode", "unaccounted", "wall")
    words = [f"{name} {getattr(timing, name + '_s') * 1000:.1f}" for name in parts]
    usage = response.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    tokens = f"{usage.prompt_tokens} prompt{cached} and {usage.completion_tokens} answer tokens"
    print(f"{ending_of(response)}; {tokens}; ms: {', '.join(words)}", file=sys.stderr)


def _print_score(name: str, score: pb.TokenLogprobs) -> None:
    best = zip(score.top_token_ids, score.top_logprobs, strict=True)
    words = "".join(f"; {token} {logprob:.4f}" for token, logprob in best)
    print(f"{name}, logprob {score.logprob:.4f}, rank {score.rank}{words}", file=sys.stderr)
