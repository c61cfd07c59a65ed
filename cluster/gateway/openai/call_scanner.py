"""One tool call as a JSON object, read while it is being written: its name, and its arguments as the text they are."""

import json
from enum import Enum

NAMES, ARGUMENTS = ("name",), ("arguments", "parameters")
SPACE = " \t\r\n"


class _At(Enum):
    """Where in the object the scanner stands."""

    START = "start"
    KEY = "key"
    COLON = "colon"
    VALUE = "value"
    INSIDE = "inside"
    COMMA = "comma"
    END = "end"
    BROKEN = "broken"


class CallScanner:
    """Reads `{"name": …, "arguments": {…}}` a piece at a time, with `parameters` for `arguments` as Llama writes it.

    Owns: what it has read. Arguments are told as they were written once the name is known, so a client may take them
    while they grow; they are JSON as far as the model wrote JSON.
    """

    def __init__(self) -> None:
        self.name = ""
        self.seen = ""
        self._at = _At.START
        self._key = ""
        self._token = ""
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._arguments = ""

    @property
    def has_begun(self) -> bool:
        """Whether the name is known."""
        return bool(self.name)

    @property
    def is_whole(self) -> bool:
        """Whether the object has ended."""
        return self._at is _At.END

    @property
    def is_broken(self) -> bool:
        """Whether this can be no call."""
        return self._at is _At.BROKEN or (self.is_whole and not self.name)

    def push(self, text: str) -> str:
        """Read on; what stands behind the object's end."""
        for place, char in enumerate(text):
            if self._at in (_At.END, _At.BROKEN):
                self.seen += text[:place]
                return text[place:]
            self._step(char)
        self.seen += text
        return ""

    def take(self) -> str:
        """The arguments that came since the last time; none before the name is known."""
        if not self.name:
            return ""
        taken, self._arguments = self._arguments, ""
        return taken

    def _step(self, char: str) -> None:
        match self._at:
            case _At.START:
                self._expect(char, "{", _At.KEY)
            case _At.KEY:
                self._on_key(char)
            case _At.COLON:
                self._expect(char, ":", _At.VALUE)
            case _At.VALUE:
                if char not in SPACE:
                    self._at, self._token, self._depth = _At.INSIDE, "", 0
                    self._on_value(char)
            case _At.INSIDE:
                self._on_value(char)
            case _At.COMMA:
                self._on_comma(char)

    def _expect(self, char: str, wanted: str, then: _At) -> None:
        if char == wanted:
            self._at, self._token = then, ""
        elif char not in SPACE:
            self._at = _At.BROKEN

    def _on_key(self, char: str) -> None:
        if not self._token:
            if char == "}" and not self._key:
                self._at = _At.BROKEN
            elif char == '"':
                self._token, self._is_escaped = char, False
            elif char not in SPACE:
                self._at = _At.BROKEN
            return
        self._token += char
        if self._closes(char):
            self._key, self._at = _parsed(self._token), _At.COLON

    def _on_value(self, char: str) -> None:
        """A character of a value; its end is a closing bracket or quote at depth 0, or what stands behind a number."""
        if self._depth == 0 and not self._in_text and self._token and char in ",}" + SPACE:
            self._end_value()
            return self._step(char)
        self._say(char)
        if self._in_text:
            self._in_text = not self._closes(char)
        elif char == '"':
            self._in_text, self._is_escaped = True, False
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        if self._depth == 0 and not self._in_text and char in '"}]':
            self._end_value()

    def _say(self, char: str) -> None:
        if self._key in ARGUMENTS:
            self._arguments += char
            self._token = "x"
        else:
            self._token += char

    def _end_value(self) -> None:
        if self._key in NAMES:
            self.name = _parsed(self._token)
            if not self.name:
                self._at = _At.BROKEN
                return
        self._at, self._token = _At.COMMA, ""

    def _on_comma(self, char: str) -> None:
        if char == ",":
            self._at, self._token = _At.KEY, ""
        elif char == "}":
            self._at = _At.END
        elif char not in SPACE:
            self._at = _At.BROKEN

    def _closes(self, char: str) -> bool:
        """Whether this quote ends a text."""
        if self._is_escaped:
            self._is_escaped = False
            return False
        self._is_escaped = char == "\\"
        return char == '"'


def _parsed(token: str) -> str:
    """A JSON text; empty where it is none."""
    try:
        value = json.loads(token)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
