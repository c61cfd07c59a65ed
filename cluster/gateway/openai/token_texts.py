"""Tokens with their probabilities, in the two shapes that OpenAI's interfaces have, and in vLLM's for prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.gateway.tokenizer import Tokenizer
from core.step import TokenLogprobs

LEAST_LOGPROB = -9999.0
"""Minus infinity is no JSON number; vLLM tells this instead."""

Json = dict[str, object]


class TokenTexts:
    """What to call a token in an answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def data(self, token: int) -> bytes:
        """Its bytes; those of its name where it is special."""
        return self._tokenizer.token_bytes(token) or self._tokenizer.word(token).encode()

    def text(self, token: int) -> str:
        """Its text, as far as it is whole characters."""
        return self.data(token).decode(errors="replace")

    def chat_entries(self, token_ids: Sequence[int], scores: Sequence[TokenLogprobs]) -> list[Json]:
        """`logprobs.content` of chat completions."""
        entries = []
        for token, score in zip(token_ids, scores, strict=False):
            best = zip(score.top_ids, score.top_logprobs, strict=True)
            top = [self._entry(each, logprob) for each, logprob in best]
            entries.append(self._entry(token, score.logprob) | {"top_logprobs": top})
        return entries

    def _entry(self, token: int, logprob: float) -> Json:
        data = self.data(token)
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}

    def prompt_entries(self, token_ids: Sequence[int], scores: Sequence[TokenLogprobs]) -> list[Json | None]:
        """vLLM's `prompt_logprobs`: for each prompt token but the first, by token id."""
        entries: list[Json | None] = [None]
        for token, score in zip(token_ids[1:], scores, strict=False):
            by_id: Json = {
                str(each): self._ranked(each, logprob, rank)
                for rank, (each, logprob) in enumerate(zip(score.top_ids, score.top_logprobs, strict=True), 1)
            }
            entries.append({str(token): self._ranked(token, score.logprob, score.rank)} | by_id)
        return entries

    def _ranked(self, token: int, logprob: float, rank: int) -> Json:
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": self.text(token)}


@dataclass(slots=True)
class CompletionLogprobs:
    """`logprobs` of completions: four columns. Owns: the columns, and the place in the text."""

    texts: TokenTexts
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: int, score: TokenLogprobs | None, piece: str) -> None:
        """A token with the text that it brought; a prompt's first has no score."""
        name = self.texts.text(token)
        self.tokens.append(name)
        self.text_offset.append(self.offset)
        self.offset += len(piece)
        self.token_logprobs.append(None if score is None else finite(score.logprob))
        if score is None:
            return self.top_logprobs.append(None)
        best = zip(score.top_ids, score.top_logprobs, strict=True)
        top = {self.texts.text(each): finite(logprob) for each, logprob in best}
        self.top_logprobs.append({name: finite(score.logprob)} | top)

    def take(self) -> Json:
        """What was added since the last time."""
        taken: Json = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return taken


def finite(logprob: float) -> float:
    """A logprob that JSON can carry."""
    return max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB
