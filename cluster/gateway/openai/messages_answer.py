"""The answer of POST /v1/messages: one message of blocks, and the events by which it grows."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.gateway.client_stream import Chunk
from cluster.gateway.openai.accounts import Json, account
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.errors import HttpError
from cluster.gateway.openai.read_answer import ReadEvents, ReadWhole
from cluster.gateway.openai.tool_calls import AnswerReader, ArgumentsSaid, CallBegun, Part, Said


@dataclass(frozen=True, slots=True)
class MessageHead:
    """What stands in every form of one message."""

    id: str
    model: str
    num_prompt_tokens: int

    def body(self, content: list[Json], reason: str | None, stop: str | None, usage: Json) -> Json:
        """The message as it is now."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }


class MessageWhole(ReadWhole[MessageHead]):
    """A message in one body."""

    def body(self) -> Json:
        """All of it."""
        blocks: list[Json] = []
        for part in self._parts():
            _grow(blocks, part)
        content = [_whole(block) for block in blocks]
        reason, stop = _ending(self._last, self._reader)
        return self._head.body(content, reason, stop, _usage(self._calls)) | {"penstock": account(self._calls.calls)}


class MessageEvents(ReadEvents[MessageHead]):
    """A message as events. Owns: how many blocks there were, and which kind the open one is."""

    def __init__(self, head: MessageHead, calls: Calls, reader: AnswerReader) -> None:
        super().__init__(head, calls, reader)
        self._num_blocks = 0
        self._open = ""

    def finish(self) -> Iterable[bytes]:
        """The last block's end, why the message ended, and what it used."""
        yield from self._close()
        reason, stop = _ending(self._last, self._reader)
        told: Json = {"delta": {"stop_reason": reason, "stop_sequence": stop}, "usage": _usage(self._calls)}
        yield _event("message_delta", told | {"penstock": account(self._calls.calls)})
        yield _event("message_stop", {})

    def failed(self, error: HttpError) -> bytes:
        """Instead of an end."""
        return _event("error", error.anthropic_body)

    def _begin(self) -> Iterator[bytes]:
        usage: Json = {"input_tokens": self._head.num_prompt_tokens, "output_tokens": 0}
        yield _event("message_start", {"message": self._head.body([], None, None, usage)})

    def _parts(self, parts: list[Part]) -> Iterator[bytes]:
        for part in parts:
            match part:
                case Said(text) if text:
                    if self._open != "text":
                        yield from self._open_block({"type": "text", "text": ""})
                    yield self._delta({"type": "text_delta", "text": text})
                case CallBegun():
                    yield from self._open_block({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
                case ArgumentsSaid(_, text) if text:
                    yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _open_block(self, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._open = str(block["type"])
        yield _event("content_block_start", {"index": self._num_blocks, "content_block": block})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield _event("content_block_stop", {"index": self._num_blocks})
            self._num_blocks += 1

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", {"index": self._num_blocks, "delta": delta})


def _grow(blocks: list[Json], part: Part) -> None:
    match part:
        case Said(text) if text:
            if not blocks or blocks[-1]["type"] != "text":
                blocks.append({"type": "text", "text": ""})
            blocks[-1]["text"] = f"{blocks[-1]['text']}{text}"
        case CallBegun():
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": ""})
        case ArgumentsSaid(_, text):
            blocks[-1]["input"] = f"{blocks[-1]['input']}{text}"


def _whole(block: Json) -> Json:
    """A call's arguments as an object; text that is none, for it was cut off, stands as it is."""
    if block["type"] != "tool_use":
        return block
    try:
        return block | {"input": json.loads(str(block["input"]) or "{}")}
    except ValueError:
        return block


def _ending(last: Chunk | None, reader: AnswerReader) -> tuple[str, str | None]:
    """Why it ended, and by which stop sequence."""
    assert last is not None and last.finish is not None, "a message without an end"
    if last.finish.value == "length":
        return "max_tokens", None
    if last.stop:
        return "stop_sequence", last.stop
    return ("tool_use" if reader.num_calls else "end_turn"), None


def _usage(calls: Calls) -> Json:
    end = calls.ends[0]
    cached = end.num_cached_tokens or 0
    return {
        "input_tokens": end.num_prompt_tokens - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": end.num_tokens,
    }


def _event(kind: str, body: Json) -> bytes:
    text = json.dumps({"type": kind} | body, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n".encode()
