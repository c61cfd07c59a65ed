"""Answers of interfaces that tell parts, not tokens: a reader takes the text apart, whole or as it comes."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from cluster.gateway.client_stream import Chunk
from cluster.gateway.openai.calls import Calls, News
from cluster.gateway.openai.tool_calls import AnswerReader, Part

Head = TypeVar("Head")
"""What stands in every form of one answer."""


class ReadWhole(Generic[Head]):
    """An answer in one body. Owns: its text so far."""

    num_scores = 0

    def __init__(self, head: Head, calls: Calls, reader: AnswerReader) -> None:
        self._head = head
        self._calls = calls
        self._reader = reader
        self._text = ""
        self._last: Chunk | None = None

    def take(self, news: News) -> None:
        """A chunk of it."""
        self._text += news.chunk.text
        self._last = news.chunk

    def _parts(self) -> list[Part]:
        return self._reader.push(self._text) + self._reader.finish()


class ReadEvents(Generic[Head]):
    """An answer as events. `_last` is None until they begin."""

    done = b""

    def __init__(self, head: Head, calls: Calls, reader: AnswerReader) -> None:
        self._head = head
        self._calls = calls
        self._reader = reader
        self._last: Chunk | None = None

    def events(self, news: News) -> Iterable[bytes]:
        """The events of a chunk."""
        if self._last is None:
            yield from self._begin()
        self._last = news.chunk
        for piece in news.chunk.pieces:
            yield from self._parts(self._reader.push(piece))
        if news.chunk.finish is not None:
            yield from self._parts(self._reader.finish())

    def _begin(self) -> Iterator[bytes]:
        """What comes before the first part."""
        raise NotImplementedError

    def _parts(self, parts: list[Part]) -> Iterator[bytes]:
        raise NotImplementedError
