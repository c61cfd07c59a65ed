"""Stop strings: the text of one answer, up to the first of them."""

from collections.abc import Sequence

from cluster.gateway.detokenizer import Detokenizer


class StopMatcher:
    """Finds the first stop string in a text that comes in pieces, however it is cut.

    The first to be complete wins; of those complete at the same character, the longest. Characters are compared as they
    are, without normalising. Text that may be the beginning of a stop string is held back until that is decided.

    Owns: the text held back, and for each stop string how much of it the text's end is.
    Source: Knuth, Morris, Pratt, Fast pattern matching in strings (1977): each character is looked at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = ""
        self._stops = tuple(stops)
        self._borders = tuple(_borders(stop) for stop in stops)
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str, may_end: bool = True) -> str:
        """What became certain with this text: all of it before a stop string, nothing after one.

        Unless it `may_end`, no stop string is complete within it; one may begin there all the same.
        """
        if self.found:
            return ""
        held = self._held + text
        for place, char in enumerate(text, len(self._held) + 1):
            complete = self._advance(char)
            if complete and may_end:
                self.found, self._held = max(complete, key=len), ""
                return held[: place - len(self.found)]
        certain = len(held) - max(self._matched, default=0)
        self._held = held[certain:]
        return held[:certain]

    def flush(self) -> str:
        """What was held back, once no text will follow."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> list[str]:
        """One character further; the stop strings that it completes."""
        complete = []
        for number, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            length = self._matched[number]
            while length and stop[length] != char:
                length = borders[length - 1]
            length += stop[length] == char
            if length == len(stop):
                complete.append(stop)
                length = borders[-1]
            self._matched[number] = length
        return complete


class AnswerText:
    """The text of one answer, from its tokens, and how many of them belong to it.

    Owns: `num_tokens`, which grows up to the token that completes a stop string, and `stop`, that string, empty before.
    The first `min_tokens` tokens complete none.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self.num_tokens = 0
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens

    @property
    def stop(self) -> str:
        """The stop string that ended the text; empty where none did."""
        return self._matcher.found if self._matcher else ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain with these tokens. Those after a stop string have none and are not counted."""
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.push(token_ids)
        text = ""
        for token in token_ids:
            if self.stop:
                break
            self.num_tokens += 1
            text += self._matcher.push(self._detokenizer.push((token,)), self._may_end)
        return text

    def finish(self) -> str:
        """The rest, once no token will follow; the last token may complete a stop string only now."""
        rest = self._detokenizer.finish()
        return rest if self._matcher is None else self._matcher.push(rest, self._may_end) + self._matcher.flush()

    @property
    def _may_end(self) -> bool:
        return self.num_tokens > self._min_tokens


def _borders(stop: str) -> tuple[int, ...]:
    """For each beginning of `stop`: the length of the longest shorter beginning that it ends with."""
    borders = [0]
    for char in stop[1:]:
        length = borders[-1]
        while length and stop[length] != char:
            length = borders[length - 1]
        borders.append(length + (stop[length] == char))
    return tuple(borders)
