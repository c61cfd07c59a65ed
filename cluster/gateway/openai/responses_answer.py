"""The answer of POST /v1/responses: a response object, and the events by which it grows."""

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cluster.api.v1.inference_pb2 import SamplingParams
from cluster.gateway.client_stream import Chunk
from cluster.gateway.ledger import CallEnd
from cluster.gateway.openai.accounts import Json, account
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.errors import HttpError
from cluster.gateway.openai.read_answer import ReadEvents, ReadWhole
from cluster.gateway.openai.responses_request import ResponsesRequest
from cluster.gateway.openai.tool_calls import AnswerReader, ArgumentsSaid, CallBegun, Part, Said


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What stands in every form of one response."""

    id: str
    created_at: int
    model: str
    asked: ResponsesRequest
    sampling: SamplingParams

    def body(self, status: str, output: Sequence[Json]) -> Json:
        """The response object as it is now."""
        asked = self.asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": list(output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "service_tier": asked.service_tier or "default",
            "store": False,
            "temperature": self._said("temperature"),
            "text": {"format": _format(asked)},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": self._said("top_p"),
            "truncation": "disabled",
            "usage": None,
        }

    def _said(self, name: str) -> float:
        """What the request asked for, or the model's own default."""
        return float(getattr(self.sampling, name)) if self.sampling.HasField(name) else 1.0


class Items:
    """The output items of one answer, as its parts come. Owns: the items, the last of them still growing."""

    def __init__(self) -> None:
        self.items: list[Json] = []
        self.text = ""
        self.arguments = ""

    @property
    def place(self) -> int:
        """Which item is the last."""
        return len(self.items) - 1

    @property
    def last(self) -> Json | None:
        """The growing item; None before the first."""
        return self.items[-1] if self.items else None

    def add_message(self) -> Json:
        """A message begins."""
        self.text = ""
        self.items.append(_message_item(_mint("msg"), "in_progress", []))
        return self.items[-1]

    def add_call(self, begun: CallBegun) -> Json:
        """A function call begins."""
        self.arguments = ""
        item: Json = {
            "type": "function_call",
            "id": _mint("fc"),
            "call_id": begun.id,
            "name": begun.name,
            "arguments": "",
            "status": "in_progress",
        }
        self.items.append(item)
        return item

    def close(self, status: str) -> Json:
        """The last item is whole."""
        item = self.items[-1]
        if item["type"] == "message":
            self.items[-1] = _message_item(str(item["id"]), status, [text_part(self.text)])
        else:
            self.items[-1] = item | {"arguments": self.arguments or "{}", "status": status}
        return self.items[-1]


class ResponseWhole(ReadWhole[ResponseHead]):
    """A response in one body."""

    def body(self) -> Json:
        """All of it."""
        items, status = Items(), _status(self._last)
        for part in self._parts():
            _grow(items, part)
        if items.last is None:
            items.add_message()
        items.close(status)
        return _finished(self._head, self._calls, items.items, status)


class ResponseEvents(ReadEvents[ResponseHead]):
    """A response as events, each with its type and its number. Owns: the items and the count of events."""

    def __init__(self, head: ResponseHead, calls: Calls, reader: AnswerReader) -> None:
        super().__init__(head, calls, reader)
        self._items = Items()
        self._num_events = 0

    def finish(self) -> Iterable[bytes]:
        """The last item's end, and the whole response."""
        status = _status(self._last)
        if self._items.last is None:
            yield from self._begin_message()
        yield from self._close(status)
        body = _finished(self._head, self._calls, self._items.items, status)
        yield self._event(f"response.{status}", {"response": body})

    def failed(self, error: HttpError) -> bytes:
        """The response as far as it came, with its error."""
        body = self._head.body("failed", self._items.items)
        body["error"] = {"code": error.code, "message": error.message}
        return self._event("response.failed", {"response": body})

    def _begin(self) -> Iterator[bytes]:
        body = self._head.body("in_progress", [])
        yield self._event("response.created", {"response": body})
        yield self._event("response.in_progress", {"response": body})

    def _parts(self, parts: list[Part]) -> Iterator[bytes]:
        for part in parts:
            match part:
                case Said(text) if text:
                    if self._items.last is None or self._items.last["type"] != "message":
                        yield from self._begin_message()
                    self._items.text += text
                    told: Json = {"content_index": 0, "delta": text, "logprobs": []}
                    yield self._event("response.output_text.delta", self._placed() | told)
                case CallBegun():
                    yield from self._close("completed")
                    item = self._items.add_call(part)
                    place = {"output_index": self._items.place, "item": item}
                    yield self._event("response.output_item.added", place)
                case ArgumentsSaid(_, text):
                    self._items.arguments += text
                    yield self._event("response.function_call_arguments.delta", self._placed() | {"delta": text})

    def _begin_message(self) -> Iterator[bytes]:
        yield from self._close("completed")
        item = self._items.add_message()
        yield self._event("response.output_item.added", {"output_index": self._items.place, "item": item})
        told: Json = {"content_index": 0, "part": text_part("")}
        yield self._event("response.content_part.added", self._placed() | told)

    def _close(self, status: str) -> Iterator[bytes]:
        last = self._items.last
        if last is None or last["status"] != "in_progress":
            return
        item, place = self._items.close(status), self._placed()
        if item["type"] == "message":
            told: Json = {"content_index": 0, "text": self._items.text, "logprobs": []}
            yield self._event("response.output_text.done", place | told)
            part: Json = {"content_index": 0, "part": text_part(self._items.text)}
            yield self._event("response.content_part.done", place | part)
        else:
            named: Json = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", place | named)
        yield self._event("response.output_item.done", {"output_index": self._items.place, "item": item})

    def _placed(self) -> Json:
        assert self._items.last is not None, "no item"
        return {"item_id": self._items.last["id"], "output_index": self._items.place}

    def _event(self, kind: str, body: Json) -> bytes:
        told = {"type": kind, "sequence_number": self._num_events} | body
        self._num_events += 1
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {text}\n\n".encode()


def text_part(text: str) -> Json:
    """A message's text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _grow(items: Items, part: Part) -> None:
    match part:
        case Said(text) if text:
            if items.last is None or items.last["type"] != "message":
                if items.last is not None:
                    items.close("completed")
                items.add_message()
            items.text += text
        case CallBegun():
            if items.last is not None:
                items.close("completed")
            items.add_call(part)
        case ArgumentsSaid(_, text):
            items.arguments += text


def _finished(head: ResponseHead, calls: Calls, items: Sequence[Json], status: str) -> Json:
    body = head.body(status, items)
    return body | {"usage": _usage(calls.ends[0]), "penstock": account(calls.calls)}


def _status(last: Chunk | None) -> str:
    assert last is not None and last.finish is not None, "a response without an end"
    return "completed" if last.finish.value == "stop" else "incomplete"


def _usage(end: CallEnd) -> Json:
    return {
        "input_tokens": end.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": end.num_cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": end.num_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": end.num_prompt_tokens + end.num_tokens,
    }


def _message_item(name: str, status: str, content: list[Json]) -> Json:
    return {"type": "message", "id": name, "status": status, "role": "assistant", "content": content}


def _format(asked: ResponsesRequest) -> Json:
    wanted = asked.text.format if asked.text is not None else None
    return {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)


def _mint(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
