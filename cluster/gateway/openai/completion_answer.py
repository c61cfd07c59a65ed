"""The answer of a completion, whole and as events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.gateway.client_stream import Chunk
from cluster.gateway.openai.accounts import Json, account, usage, usage_of
from cluster.gateway.openai.calls import Calls, News
from cluster.gateway.openai.errors import HttpError
from cluster.gateway.openai.head import Head
from cluster.gateway.openai.respond import DONE, as_json, data_event
from cluster.gateway.openai.token_texts import CompletionLogprobs
from core.request import unpack_tokens
from core.step import TokenLogprobs


@dataclass(slots=True)
class _Choice:
    """One choice: the text so far, its tokens and their logprobs."""

    logprobs: CompletionLogprobs
    text: str = ""
    num_tokens: int = 0
    has_begun: bool = False
    token_ids: list[int] = field(default_factory=list)
    scored: list[tuple[int, TokenLogprobs, str]] = field(default_factory=list)
    last: Chunk | None = None


class CompletionEvents:
    """A completion as chunks, one for each token. `echoes` are the prompts' texts, where they come first."""

    done = DONE

    def __init__(self, head: Head, calls: Calls, echoes: Sequence[str]) -> None:
        self._head = head
        self._calls = calls
        self._echoes = echoes
        num_choices = head.wishes.num_choices * len(calls.calls)
        self._choices = [_Choice(CompletionLogprobs(head.texts)) for _ in range(num_choices)]
        self._start, self._end = head.plain_start(), head.plain_end()

    def events(self, news: News) -> Iterable[bytes]:
        """The events of a chunk."""
        chunk = news.chunk
        index = news.call * self._head.wishes.num_choices + chunk.choice
        choice, num_tokens = self._choices[index], max(len(chunk.token_ids), 1)
        for place in range(num_tokens):
            piece = chunk.pieces[place] if place < len(chunk.pieces) else ""
            if not choice.has_begun and self._echoes:
                choice.logprobs.offset = len(self._echoes[news.call])
                piece = self._echoes[news.call] + piece
            choice.has_begun = True
            choice.num_tokens += bool(chunk.token_ids)
            is_last = chunk.finish is not None and place == num_tokens - 1
            if self._head.wishes.are_plain and not is_last:
                yield self._plain(index, piece)
            else:
                yield self._event(index, chunk, place, piece, is_last)

    def finish(self) -> Iterable[bytes]:
        """The usage where asked, and what became of the promise."""
        if self._head.wishes.usage:
            told: Json = {"usage": usage_of(self._calls.ends), "penstock": account(self._calls.calls)}
            yield data_event(self._head.body([]) | told)

    def failed(self, error: HttpError) -> bytes:
        """The error, in the shape of its body."""
        return data_event(error.body)

    def _plain(self, index: int, text: str) -> bytes:
        """The usual event, put together by hand: it is made for every token."""
        content = as_json(text)
        choice = f'{{"index":{index},"text":{content},"logprobs":null,"finish_reason":null}}'
        return self._start + choice.encode() + self._end

    def _event(self, index: int, chunk: Chunk, place: int, piece: str, is_last: bool) -> bytes:
        wishes, choice = self._head.wishes, self._choices[index]
        told: Json = {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
        if is_last and chunk.finish is not None:
            told |= {"finish_reason": chunk.finish.value, "stop_reason": chunk.stop or None}
        ids, scores = chunk.token_ids[place : place + 1], chunk.logprobs[place : place + 1]
        for token, score in zip(ids, scores, strict=False):
            choice.logprobs.add(token, score, piece)
            told["logprobs"] = choice.logprobs.take()
        if wishes.token_ids:
            told["token_ids"] = list(ids)
        body = self._head.body([told])
        if wishes.usage:
            body["usage"] = self._running_usage() if wishes.running_usage else None
        elif is_last and chunk.ended is not None and len(self._calls.calls) == 1:
            body["penstock"] = account(self._calls.calls)
        return data_event(body)

    def _running_usage(self) -> Json:
        num_prompt_tokens = sum(call.request.prompt.num_tokens for call in self._calls.calls)
        return usage(num_prompt_tokens, sum(choice.num_tokens for choice in self._choices))


@dataclass(frozen=True, slots=True)
class PromptTelling:
    """What is told of the prompts: `echoes` are their texts where they come first, `scores` whether with logprobs."""

    echoes: tuple[str, ...] = ()
    scores: bool = False
    entries: bool = False


class CompletionWhole:
    """A completion in one body. Owns: what came of each choice, and of each prompt's scores."""

    def __init__(self, head: Head, calls: Calls, telling: PromptTelling) -> None:
        self._head = head
        self._calls = calls
        self._telling = telling
        num_choices = head.wishes.num_choices * len(calls.calls)
        self._choices = [_Choice(CompletionLogprobs(head.texts)) for _ in range(num_choices)]
        self._prompt_scores: dict[int, tuple[TokenLogprobs, ...]] = {}

    def take(self, news: News) -> None:
        """A chunk of a choice."""
        chunk = news.chunk
        choice = self._choices[news.call * self._head.wishes.num_choices + chunk.choice]
        if chunk.prompt_logprobs:
            self._prompt_scores[news.call] = chunk.prompt_logprobs
        for place, (token, score) in enumerate(zip(chunk.token_ids, chunk.logprobs, strict=False)):
            choice.scored.append((token, score, chunk.pieces[place] if place < len(chunk.pieces) else ""))
        choice.text += chunk.text
        choice.token_ids += chunk.token_ids
        choice.last = chunk if chunk.finish is not None else choice.last

    @property
    def num_scores(self) -> int:
        """How many tokens' logprobs the body tells."""
        num_of_prompts = sum(len(scores) for scores in self._prompt_scores.values())
        return num_of_prompts + sum(len(choice.scored) for choice in self._choices)

    def body(self) -> Json:
        """All of it."""
        body = self._head.body([self._choice(index, choice) for index, choice in enumerate(self._choices)])
        return body | {"usage": usage_of(self._calls.ends), "penstock": account(self._calls.calls)}

    def _echo(self, choice: _Choice, call: int) -> str:
        """The prompt's text, its tokens before the answer's where they are scored."""
        if not self._telling.echoes:
            return ""
        text = self._telling.echoes[call]
        if self._telling.scores:
            token_ids = unpack_tokens(self._calls.calls[call].request.token_ids)
            for token, score in zip(token_ids, (None, *self._prompt_scores.get(call, ())), strict=False):
                choice.logprobs.add(token, score, self._head.texts.text(token))
        choice.logprobs.offset = len(text)
        return text

    def _logprobs(self, choice: _Choice) -> Json | None:
        if not self._head.wishes.logprobs:
            return None
        for token, score, piece in choice.scored:
            choice.logprobs.add(token, score, piece)
        return choice.logprobs.take()

    def _choice(self, index: int, choice: _Choice) -> Json:
        last, call = choice.last, index // self._head.wishes.num_choices
        assert last is not None and last.finish is not None, "a choice without an end"
        told: Json = {
            "index": index,
            "text": self._echo(choice, call) + choice.text,
            "logprobs": self._logprobs(choice),
            "finish_reason": last.finish.value,
            "stop_reason": last.stop or None,
        }
        request = self._calls.calls[call].request
        if self._telling.entries and call in self._prompt_scores:
            ids = unpack_tokens(request.token_ids)
            told["prompt_logprobs"] = self._head.texts.prompt_entries(ids, self._prompt_scores[call])
        if self._head.wishes.token_ids:
            told |= {"token_ids": choice.token_ids, "prompt_token_ids": list(unpack_tokens(request.token_ids))}
        return told
