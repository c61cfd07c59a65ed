"""Tool calls in the text that a model writes: told apart from prose while the text is still coming."""

import secrets
from dataclasses import dataclass
from typing import Protocol

from cluster.gateway.chat_template import ChatTemplate
from cluster.gateway.openai.call_scanner import CallScanner
from cluster.gateway.openai.config import CallFormat
from cluster.gateway.openai.tools import CallForm, ToolUse

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Said:
    """Prose."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a function; the calls of an answer are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsSaid:
    """More of a call's arguments, which are JSON text."""

    index: int
    text: str


Part = Said | CallBegun | ArgumentsSaid


class AnswerReader(Protocol):
    """Reads one answer's text as it comes."""

    @property
    def num_calls(self) -> int:
        """How many calls have begun so far."""
        ...

    def push(self, text: str) -> list[Part]:
        """What became certain with this text."""
        ...

    def finish(self) -> list[Part]:
        """The rest, once no text will follow."""
        ...


def format_of(asked: CallFormat, template: ChatTemplate | None) -> CallFormat:
    """The format of a model, by what its template teaches."""
    if asked is not CallFormat.AUTO or template is None or not template.takes_tools:
        return asked if asked is not CallFormat.AUTO else CallFormat.NONE
    if OPENING in template.source:
        return CallFormat.HERMES
    return CallFormat.LLAMA3_JSON if '"parameters"' in template.source else CallFormat.NONE


def reader_of(use: ToolUse, written: CallFormat, is_single: bool) -> AnswerReader:
    """A reader for one answer. `is_single`: calls after the first are dropped."""
    match use.form:
        case CallForm.NAMED:
            return NamedReader(use.name)
        case CallForm.REQUIRED:
            return JsonReader(_Calls(is_single), is_list=True)
        case CallForm.AUTO if written is CallFormat.HERMES:
            return TaggedReader(_Calls(is_single))
        case CallForm.AUTO if written is CallFormat.LLAMA3_JSON:
            return JsonReader(_Calls(is_single), is_list=False)
    return PlainReader()


class PlainReader:
    """All is prose."""

    @property
    def num_calls(self) -> int:
        """None ever."""
        return 0

    def push(self, text: str) -> list[Part]:
        """The text, even an empty one: each token has its event."""
        return [Said(text)]

    def finish(self) -> list[Part]:
        """Nothing is held back."""
        return []


class NamedReader:
    """All is the arguments of the one function that was forced."""

    def __init__(self, name: str) -> None:
        self.num_calls = 0
        self._name = name

    def push(self, text: str) -> list[Part]:
        """The call, then its arguments."""
        begun: list[Part] = [] if self.num_calls else [CallBegun(0, mint_call(), self._name)]
        self.num_calls = 1
        return [*begun, ArgumentsSaid(0, text)] if text or begun else []

    def finish(self) -> list[Part]:
        """Nothing is held back."""
        return []


class _Calls:
    """Numbers calls. Owns: the scanner of the one that is being written."""

    def __init__(self, is_single: bool) -> None:
        self.number = 0
        self.scanner = CallScanner()
        self._is_single = is_single

    @property
    def num_told(self) -> int:
        """How many have begun, but for those that are dropped."""
        begun = self.number + self.scanner.has_begun
        return min(begun, 1) if self._is_single else begun

    def push(self, text: str) -> tuple[list[Part], str]:
        """What this text says of the call, and what stands behind its end."""
        before, rest = self.scanner.has_begun, self.scanner.push(text)
        arguments, parts = self.scanner.take(), list[Part]()
        if self._is_single and self.number:
            return parts, rest
        if self.scanner.has_begun and not before:
            parts.append(CallBegun(self.number, mint_call(), self.scanner.name))
        if arguments:
            parts.append(ArgumentsSaid(self.number, arguments))
        return parts, rest

    def end(self) -> None:
        """The next call comes."""
        self.number += self.scanner.has_begun
        self.scanner = CallScanner()


class TaggedReader:
    """Hermes and Qwen: prose, with calls as JSON between `<tool_call>` and `</tool_call>`."""

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls
        self._held = ""
        self._inside = ""
        self._is_inside = False

    @property
    def num_calls(self) -> int:
        """How many have begun."""
        return self._calls.num_told

    def push(self, text: str) -> list[Part]:
        """Prose and calls; what may become a tag is held back."""
        self._held += text
        parts: list[Part] = []
        while self._held:
            tag = CLOSING if self._is_inside else OPENING
            before, found, after = self._held.partition(tag)
            if not found:
                keep = _overlap(before, tag)
                before, self._held = before[: len(before) - keep], before[len(before) - keep :]
            parts += self._read(before)
            if not found:
                break
            self._held = after
            self._turn(parts)
        return parts

    def finish(self) -> list[Part]:
        """What was held back; a call that broke off before its name is prose."""
        parts = self._read(self._held)
        self._held = ""
        if self._is_inside and not self._calls.scanner.has_begun:
            parts.append(Said(OPENING + self._inside))
        return parts

    def _read(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._is_inside:
            self._inside += text
            return self._calls.push(text)[0]
        return [] if self.num_calls and text.isspace() else [Said(text)]

    def _turn(self, parts: list[Part]) -> None:
        """Past a tag. What stood between two and was no call is prose."""
        if self._is_inside:
            if not self._calls.scanner.has_begun:
                parts.append(Said(OPENING + self._inside + CLOSING))
            self._calls.end()
        self._inside = ""
        self._is_inside = not self._is_inside


class JsonReader:
    """Llama 3: the whole answer is one call as JSON, or several with `;` between; anything else is prose.

    `is_list`: the answer is a JSON list of calls, as a schema forced it.
    """

    def __init__(self, calls: _Calls, is_list: bool) -> None:
        self._calls = calls
        self._between = "[],;" if is_list else ";"
        self._text = ""
        self._is_prose = False

    @property
    def num_calls(self) -> int:
        """How many have begun."""
        return self._calls.num_told

    def push(self, text: str) -> list[Part]:
        """Calls; prose as soon as it can be none."""
        if self._is_prose:
            return [Said(text)]
        self._text += text
        parts: list[Part] = []
        while text:
            if not self._calls.scanner.seen:
                text = text.lstrip().lstrip(self._between).lstrip()
                if not text:
                    break
            said, text = self._calls.push(text)
            parts += said
            if self._calls.scanner.is_broken and not self.num_calls:
                self._is_prose = True
                return [Said(self._text)]
            if self._calls.scanner.is_whole:
                self._calls.end()
            elif self._calls.scanner.is_broken:
                break
        return parts

    def finish(self) -> list[Part]:
        """What never became a call is prose."""
        if self._is_prose or self.num_calls or not self._text:
            return []
        self._is_prose = True
        return [Said(self._text)]


def mint_call() -> str:
    """A name for a call."""
    return f"call_{secrets.token_hex(12)}"


def _overlap(text: str, tag: str) -> int:
    """How much of the text's end is a beginning of the tag."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
