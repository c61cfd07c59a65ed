"""The answer of a chat completion, whole and as events."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cluster.gateway.client_stream import Chunk
from cluster.gateway.openai.accounts import Json, account, usage, usage_of
from cluster.gateway.openai.calls import Calls, News
from cluster.gateway.openai.errors import HttpError
from cluster.gateway.openai.head import Head
from cluster.gateway.openai.respond import DONE, as_json, data_event
from cluster.gateway.openai.tool_calls import AnswerReader, ArgumentsSaid, CallBegun, Part, Said
from core.request import unpack_tokens
from core.step import TokenLogprobs

ReaderMaker = Callable[[], AnswerReader]


@dataclass(slots=True)
class _Choice:
    """One choice of a stream."""

    reader: AnswerReader
    num_tokens: int = 0
    has_begun: bool = False


class ChatEvents:
    """A chat completion as chunks: one for each token, the role with the first. Owns: each choice's reader."""

    done = DONE

    def __init__(self, head: Head, calls: Calls, new_reader: ReaderMaker) -> None:
        self._head = head
        self._calls = calls
        self._choices = [_Choice(new_reader()) for _ in range(head.wishes.num_choices)]
        self._is_plain = head.wishes.are_plain
        self._start, self._end = head.plain_start(), head.plain_end()

    def events(self, news: News) -> Iterable[bytes]:
        """The events of a chunk."""
        chunk, choice = news.chunk, self._choices[news.chunk.choice]
        num_tokens = len(chunk.token_ids) or 1
        last = num_tokens - 1 if chunk.finish is not None else None
        return [event for place in range(num_tokens) for event in self._token(chunk, place, choice, place == last)]

    def finish(self) -> Iterable[bytes]:
        """The usage where asked, and what became of the promise."""
        ends = self._calls.ends
        body = self._head.body([])
        if self._head.wishes.usage:
            body["usage"] = usage_of(ends)
            yield data_event(body | {"penstock": account(self._calls.calls)})

    def failed(self, error: HttpError) -> bytes:
        """The error, in the shape of its body."""
        return data_event(error.body)

    def _token(self, chunk: Chunk, place: int, choice: _Choice, is_last: bool) -> Iterable[bytes]:
        piece = chunk.pieces[place] if place < len(chunk.pieces) else ""
        parts: list[Part] = choice.reader.push(piece) if piece or chunk.token_ids else []
        choice.num_tokens += bool(chunk.token_ids)
        if self._is_plain and choice.has_begun and not is_last and all(isinstance(part, Said) for part in parts):
            return [self._plain(chunk.choice, part.text) for part in parts if isinstance(part, Said)]
        return self._told(chunk, place, choice, parts, is_last)

    def _told(self, chunk: Chunk, place: int, choice: _Choice, parts: list[Part], is_last: bool) -> Iterator[bytes]:
        if is_last:
            parts += choice.reader.finish()
        deltas: list[Json] = [delta_of(part) for part in parts]
        if not deltas and (is_last or chunk.logprobs or self._head.wishes.token_ids):
            deltas = [{}]
        for number, delta in enumerate(deltas):
            reason = finish_reason(chunk, choice.reader) if is_last and number == len(deltas) - 1 else None
            if self._is_plain and choice.has_begun and reason is None and "content" in delta:
                yield self._plain(chunk.choice, str(delta["content"]))
            else:
                yield self._event(chunk, place if number == 0 else None, choice, delta, reason)

    def _plain(self, index: int, text: str) -> bytes:
        """The usual event, put together by hand: it is made for every token."""
        content = as_json(text)
        choice = f'{{"index":{index},"delta":{{"content":{content}}},"logprobs":null,"finish_reason":null}}'
        return self._start + choice.encode() + self._end

    def _event(self, chunk: Chunk, place: int | None, choice: _Choice, delta: Json, reason: str | None) -> bytes:
        """Any event; what is told of a token stands in its first one."""
        head = self._head
        if not choice.has_begun:
            choice.has_begun = True
            delta = {"role": "assistant", "content": ""} | delta
        told: Json = {"index": chunk.choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        if reason is not None:
            told["stop_reason"] = chunk.stop or None
        if place is not None:
            ids, scores = chunk.token_ids[place : place + 1], chunk.logprobs[place : place + 1]
            if scores:
                told["logprobs"] = {"content": head.texts.chat_entries(ids, scores)}
            if head.wishes.token_ids:
                told["token_ids"] = list(ids)
        body = head.body([told])
        if head.wishes.usage:
            body["usage"] = self._running_usage() if head.wishes.running_usage else None
        elif reason is not None and chunk.ended is not None:
            body["penstock"] = account(self._calls.calls)
        return data_event(body)

    def _running_usage(self) -> Json:
        num_prompt_tokens = self._calls.calls[0].request.prompt.num_tokens
        return usage(num_prompt_tokens, sum(choice.num_tokens for choice in self._choices))


@dataclass(slots=True)
class _Message:
    """One choice of a whole answer, put together."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    last: Chunk | None = None


class ChatWhole:
    """A chat completion in one body. Owns: what came of each choice."""

    def __init__(self, head: Head, calls: Calls, new_reader: ReaderMaker) -> None:
        self._head = head
        self._calls = calls
        self._new_reader = new_reader
        self._messages = [_Message() for _ in range(head.wishes.num_choices)]
        self._prompt_scores: tuple[TokenLogprobs, ...] = ()

    def take(self, news: News) -> None:
        """A chunk of a choice."""
        chunk, message = news.chunk, self._messages[news.chunk.choice]
        message.text += chunk.text
        message.token_ids += chunk.token_ids
        message.scores += chunk.logprobs
        if chunk.finish is not None:
            message.last = chunk
        self._prompt_scores = chunk.prompt_logprobs or self._prompt_scores

    @property
    def num_scores(self) -> int:
        """How many tokens' logprobs the body tells."""
        return len(self._prompt_scores) + sum(len(message.scores) for message in self._messages)

    def body(self) -> Json:
        """All of it."""
        body = self._head.body([self._choice(index, message) for index, message in enumerate(self._messages)])
        body["usage"] = usage_of(self._calls.ends)
        prompt = unpack_tokens(self._calls.calls[0].request.token_ids)
        if self._prompt_scores:
            body["prompt_logprobs"] = self._head.texts.prompt_entries(prompt, self._prompt_scores)
        if self._head.wishes.token_ids:
            body["prompt_token_ids"] = list(prompt)
        return body | {"penstock": account(self._calls.calls)}

    def _choice(self, index: int, message: _Message) -> Json:
        assert message.last is not None, "a choice without an end"
        reader = self._new_reader()
        parts = reader.push(message.text) + reader.finish()
        told: Json = {
            "index": index,
            "message": message_of(parts),
            "logprobs": self._logprobs(message),
            "finish_reason": finish_reason(message.last, reader),
            "stop_reason": message.last.stop or None,
        }
        return told | {"token_ids": message.token_ids} if self._head.wishes.token_ids else told

    def _logprobs(self, message: _Message) -> Json | None:
        if not self._head.wishes.logprobs:
            return None
        return {"content": self._head.texts.chat_entries(message.token_ids, message.scores)}


def finish_reason(chunk: Chunk, reader: AnswerReader) -> str:
    """`tool_calls` where the answer ended after calls by itself."""
    assert chunk.finish is not None, "no end"
    return "tool_calls" if reader.num_calls and chunk.finish.value == "stop" else chunk.finish.value


def delta_of(part: Part) -> Json:
    """A part of an answer as a delta."""
    match part:
        case Said(text):
            return {"content": text}
        case CallBegun(index, call, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call, "type": "function", "function": function}]}
        case ArgumentsSaid(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(parts: Iterable[Part]) -> Json:
    """All parts of an answer as a message."""
    text, calls = "", list[Json]()
    names, arguments = list[CallBegun](), dict[int, str]()
    for part in parts:
        match part:
            case Said(said):
                text += said
            case CallBegun():
                names.append(part)
            case ArgumentsSaid(index, more):
                arguments[index] = arguments.get(index, "") + more
    for call in names:
        function = {"name": call.name, "arguments": arguments.get(call.index) or "{}"}
        calls.append({"id": call.id, "type": "function", "function": function})
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text if text.strip() else None, "tool_calls": calls}
