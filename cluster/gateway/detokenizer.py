"""Token ids of one stream to text, piece by piece; the pieces together are what decoding all at once gives."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """One stream's text. Emits whole characters only; `finish` gives what was held back."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        ...

    def finish(self) -> str:
        """The rest, once no token will follow."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies, where every token is a run of UTF-8 bytes.

    `token_bytes` is None for a token without text (special, or outside the vocabulary).
    """

    def __init__(self, token_bytes: Callable[[int], bytes | None]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        return self._decoder.decode(b"".join([self._token_bytes(token) or b"" for token in token_ids]))

    def finish(self) -> str:
        """The rest, once no token will follow."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other vocabulary: decodes a short window twice, without and with the new tokens; the difference is new.

    Invariant: the window begins with tokens whose text was not empty, so that what a decoder does to the beginning of
    a text (a space stripped) happens to them, not to the new ones. `is_open` tells tokens after which text may change.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], has_text: Callable[[int], bool], is_open: Callable[[int], bool]
    ) -> None:
        self._decode = decode
        self._has_text = has_text
        self._is_open = is_open
        self._window: list[int] = []
        self._num_said = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        return "".join(self._say(False) for token in token_ids if self._append(token))

    def finish(self) -> str:
        """The rest, once no token will follow."""
        return self._say(True)

    def _append(self, token: int) -> bool:
        if not self._has_text(token):
            return False
        self._window.append(token)
        return not self._is_open(token)

    def _say(self, is_last: bool) -> str:
        said, text = self._decode(self._window[: self._num_said]), self._decode(self._window)
        if text.endswith(REPLACEMENT) and not is_last:
            return ""
        new = text[len(said) :]
        if new:
            del self._window[: self._num_said]
            self._num_said = len(self._window)
        return new
