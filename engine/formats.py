"""Compiles what answers must be against a model's vocabulary.

Imports no torch: the gateway's checks use it too. Imports llguidance with the first format: a machine that only tests
kernels need not have it.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import RequestError
from core.request import AnswerFormat, FormatKind

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_COMPILED = 32
"""Formats that stay compiled; a clone of one takes microseconds, compiling it milliseconds. Clones share a lexer, whose
states add up: about 1 kB for every character that is new to it."""

_WHITESPACE = r"\x20|\x0A[\x20\x09]{0,32}"
"""Between the parts of JSON: a space, or a new line with up to 32 of indentation. Where any whitespace may come, a
model that has begun with spaces does not end."""

_JSON_OPTIONS = {"lenient": False, "coerce_one_of": False, "whitespace_pattern": _WHITESPACE}

_UNSERVED = "unsupported_parameter"

_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords of a schema whose keys are names, not keywords."""

_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords of a schema that hold values, not schemas."""


class FormatError(RequestError):
    """A format is no schema, expression or grammar, asks for what is not supported, or for too much."""

    code = "invalid_grammar"


class FormatCompiler:
    """Makes matchers, which know what may come next in an answer. Safe to use from several threads at once.

    Owns: the vocabulary as the matchers need it, read when first asked for, and the formats compiled last.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[AnswerFormat, LLMatcher] = OrderedDict()

    @property
    def can_compile(self) -> bool:
        """Whether there is a vocabulary at all; a folder without one serves token ids only."""
        return self._path.is_file()

    def load(self) -> "LLTokenizer":
        """The vocabulary. Raises FormatError where there is none, or none of a kind that is supported."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._read()
            return self._vocabulary

    def compile(self, wanted: AnswerFormat) -> "LLMatcher":
        """A matcher at the beginning of an answer, the caller's own. Raises FormatError."""
        with self._lock:
            if (found := self._compiled.get(wanted)) is not None:
                self._compiled.move_to_end(wanted)
                return found.deep_copy()
        return self.compile_anew(wanted)

    def compile_anew(self, wanted: AnswerFormat) -> "LLMatcher":
        """The same with a lexer of its own, which others share from now on: one that has met a limit stays there."""
        vocabulary = self.load()
        from llguidance import LLMatcher

        made = LLMatcher(vocabulary, _grammar(wanted), log_level=0, limits=_limits())
        if made.is_error():
            raise FormatError(_one_line(made.get_error()))
        with self._lock:
            self._compiled[wanted] = made
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return made.deep_copy()

    def check(self, wanted: AnswerFormat) -> None:
        """Raises FormatError for a format that cannot be compiled, or that no answer can have."""
        matcher = self.compile(wanted)
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            what = _one_line(matcher.get_error())
            raise FormatError("no answer can match it" if what.startswith("NoExtension") else what)
        if not mask.any():
            raise FormatError("no token of this model can begin an answer that matches it")

    @property
    def _path(self) -> Path:
        return self._folder / "tokenizer.json"

    def _read(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise FormatError("llguidance is not installed: pip install llguidance", code=_UNSERVED) from error
        if not self.can_compile:
            raise FormatError("this model has no tokenizer.json", code=_UNSERVED)
        try:
            return LLTokenizer(self._path.read_text(), n_vocab=self._vocab_size, eos_token=self._eos or None)
        except ValueError as error:
            problem = f"is not served for this model: its tokenizer is of a kind that is not supported ({error})"
            raise FormatError(problem, code=_UNSERVED) from error


def read_format(kind: FormatKind, text: str) -> AnswerFormat:
    """A client's text as a format that every node reads alike: a grammar in GBNF or EBNF becomes one in Lark.

    Raises FormatError for what can be told without a vocabulary.
    """
    match kind:
        case FormatKind.JSON_SCHEMA:
            _check_schema(text)
        case FormatKind.LARK:
            text = _lark(text)
        case FormatKind.REGEX:
            if not text:
                raise FormatError("must not be empty")
    return AnswerFormat(kind, text)


def explain(problem: str, wanted: AnswerFormat) -> str:
    """What a compiler says of a schema, with the place that it means where it names none."""
    if wanted.kind is not FormatKind.JSON_SCHEMA:
        return problem
    schema = json.loads(wanted.text)
    if problem.startswith("Unimplemented keys: "):
        keywords = json.loads(problem.removeprefix("Unimplemented keys: "))
        places = [f"{keyword} (at {_place(schema, keyword) or '/'})" for keyword in keywords]
        return f"{', '.join(places)}: not supported"
    for prefix, keyword in (("Invalid type: ", "type"), ("Unknown format: ", "format")):
        if problem.startswith(prefix):
            place = _place(schema, keyword, problem.removeprefix(prefix))
            return problem if place is None else f"{problem} (at {place or '/'})"
    return problem


@cache
def _limits() -> "LLParserLimits":
    """Work, not time: what the gateway takes, every node takes. A step's is 14 ms of lexer and 1 ms of parser."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _grammar(wanted: AnswerFormat) -> str:
    from llguidance import LLMatcher

    match wanted.kind:
        case FormatKind.JSON_SCHEMA:
            try:
                return LLMatcher.grammar_from_json_schema(wanted.text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
            except ValueError as error:
                raise FormatError(_one_line(str(error))) from error
        case FormatKind.REGEX:
            return LLMatcher.grammar_from_regex(wanted.text)
        case FormatKind.LARK:
            return LLMatcher.grammar_from_lark(wanted.text)


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise FormatError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise FormatError("is nested too deeply") from error
    if not isinstance(schema, dict):
        raise FormatError("must be a JSON object")
    _refuse_options(text)


def _lark(text: str) -> str:
    if not text.strip():
        raise FormatError("must not be empty")
    from llguidance.gbnf_to_lark import any_to_lark

    _refuse_options(text)
    try:
        lark = any_to_lark(text)
    except RecursionError as error:
        raise FormatError("is nested too deeply") from error
    except Exception as error:  # the converter raises bare Exception
        raise FormatError(f"is neither Lark nor GBNF: {_one_line(str(error))}") from error
    if "temperature" in lark and _names_attribute(lark, "temperature"):
        raise FormatError("[temperature=…]: not supported; a request has one temperature")
    return lark


def _refuse_options(text: str) -> None:
    if "x-guidance" in text:
        raise FormatError("x-guidance: not supported; how a schema is read is not the caller's to set")


def _names_attribute(lark: str, name: str) -> bool:
    """Whether a rule has this attribute, as in `rule[name=1]: …`."""
    heads = (line.partition(":")[0] for line in lark.splitlines())
    return any("[" in head and name in head.partition("[")[2] for head in heads)


def _place(schema: object, keyword: str, value: str | None = None, path: str = "") -> str | None:
    """A JSON pointer to the first schema that has a keyword, with this value where one is given; None without one."""
    if isinstance(schema, dict):
        is_names = path.rpartition("/")[2] in _NAMES
        if not is_names and keyword in schema and value in (None, schema[keyword]):
            return path
        inner = [
            (str(key).replace("~", "~0").replace("/", "~1"), each)
            for key, each in schema.items()
            if is_names or key not in _VALUES
        ]
    elif isinstance(schema, list):
        inner = [(str(index), each) for index, each in enumerate(schema)]
    else:
        return None
    found = (_place(each, keyword, value, f"{path}/{key}") for key, each in inner)
    return next((place for place in found if place is not None), None)


def _one_line(problem: str) -> str:
    """A compiler's message without the lines that repeat its input."""
    return " ".join(problem.partition("\n<")[0].split())
