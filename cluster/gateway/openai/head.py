"""What stands around every part of one answer: its id, its model, what the client wants to be told."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.gateway.openai.accounts import Json
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.sampling import Asked, Sampled, StreamOptions
from cluster.gateway.openai.token_texts import TokenTexts


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an answer tells beside its text."""

    usage: bool = False
    running_usage: bool = False
    token_ids: bool = False
    logprobs: bool = False
    num_choices: int = 1

    @property
    def are_plain(self) -> bool:
        """Whether an event has nothing but text."""
        return not (self.running_usage or self.token_ids or self.logprobs)


@dataclass(frozen=True, slots=True)
class Head:
    """One answer's own facts. `kind` is its `object`."""

    id: str
    kind: str
    model: str
    created: int
    wishes: Wishes
    texts: TokenTexts

    def body(self, choices: Sequence[Json]) -> Json:
        """A body or event with these choices."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }

    def plain_start(self) -> bytes:
        """The bytes of an event up to its only choice."""
        text = json.dumps(self.body([]), ensure_ascii=False, separators=(",", ":"))
        return b"data: " + text[: -len("]}")].encode()

    def plain_end(self) -> bytes:
        """And behind it."""
        return b'],"usage":null}\n\n' if self.wishes.usage else b"]}\n\n"


def new_head(prefix: str, kind: str, calls: Calls, wishes: Wishes, texts: TokenTexts) -> Head:
    """The head of an answer that begins now."""
    name, model = calls.calls[0].requests[0], calls.model_name
    return Head(f"{prefix}{name}", kind, model, int(time.time()), wishes, texts)


def wishes_of(asked: Sampled, logprobs: bool) -> Wishes:
    """The wishes of a request."""
    options = asked.stream_options or StreamOptions.model_construct()
    return Wishes(
        usage=bool(options.include_usage or options.continuous_usage_stats),
        running_usage=bool(options.continuous_usage_stats),
        token_ids=tells_ids(asked),
        logprobs=logprobs,
        num_choices=asked.n or 1,
    )


def tells_ids(asked: Asked) -> bool:
    """Whether token ids are told."""
    return bool(asked.return_token_ids)
