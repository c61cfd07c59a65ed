"""Rows whose answers have a format: where each stands in it, and what may come next.

That is computed on a thread while the model computes the step's logits. On a device the tokens of the step before are
awaited there too, so that steps overlap as they do without formats; only drawing waits.
"""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from core.ids import AttemptId
from core.request import SamplingParams
from engine.formats import FormatCompiler, FormatError
from engine.masks import Bits, Masks, empty_bits, without

if TYPE_CHECKING:
    from llguidance import LLMatcher

LOG = logging.getLogger("penstock.engine")

NUM_THREADS = 2
"""One for the masks of a step, which may have to wait for what the other compiles."""


@dataclass(frozen=True, slots=True)
class PendingToken:
    """A token that was sampled and is not collected yet: `tokens[place]`, valid once `ready` has happened."""

    tokens: Tensor
    place: int
    ready: torch.cuda.Event | None

    def read(self) -> int:
        """Waits for it; -1 where the logits were not finite."""
        if self.ready is not None:
            self.ready.synchronize()
        return int(self.tokens[self.place])


@dataclass(slots=True, eq=False)
class Guide:
    """Where one row's answer stands in its format: a function of the format and the answer's tokens, and nothing else.

    Owns: the row's matcher, None until it is needed. `taken` are the tokens of the answer that it knows, u32 each;
    `pending` are those that the host may not read from the row yet. `problem` is why nothing may come any more.
    """

    attempt: AttemptId
    sampling: SamplingParams
    compiled: "Future[LLMatcher]"
    compile_anew: "Callable[[], LLMatcher]"
    matcher: "LLMatcher | None" = None
    taken: "array[int]" = field(default_factory=lambda: array("I"))
    pending: deque[PendingToken] = field(default_factory=deque)
    problem: str = ""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever goes wrong inside ends this answer alone; a panic of the library is no Exception."""
        try:
            yield
        except BaseException as error:
            self._give_up(f"{type(error).__name__}: {error}")

    def collected(self) -> None:
        """The row itself has the oldest pending token now, and what drafts added to it."""
        self.pending.popleft()

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by tokens of the answer."""
        for token in token_ids:
            if token < 0:
                self._give_up("its last token was lost")
                return
            matcher = self._ready_matcher()
            self.taken.append(token)
            if matcher is not None and not matcher.consume_token(token):
                self._renew(f"token {token} at place {len(self.taken) - 1} does not belong there")

    def num_fitting(self, drafts: Sequence[int], ends: frozenset[int]) -> int:
        """How many drafts the format allows, one after the other; none behind an end token, which is never drafted."""
        matcher, drafts = self._ready_matcher(), _before(drafts, ends)
        return matcher.validate_tokens(drafts) if matcher is not None and drafts else 0

    def fill(self, bits: Bits, drafts: Sequence[int], ends: Sequence[int]) -> None:
        """What may come next, and after each draft. Shapes: [1 + len(drafts), words]."""
        matcher = self._ready_matcher()
        if matcher is None or not (problem := _fill(bits, matcher, drafts)):
            self._spare_ends(bits, ends)
            return
        self._renew(problem)
        matcher = self._ready_matcher()
        if matcher is not None and (problem := _fill(bits, matcher, drafts)):
            self._give_up(problem)
        self._spare_ends(bits, ends)

    def _spare_ends(self, bits: Bits, ends: Sequence[int]) -> None:
        """Before `min_tokens` no end comes, unless nothing else may."""
        if len(self.taken) < self.sampling.min_tokens and (rest := without(bits[0], ends)).any():
            bits[0] = rest

    def _ready_matcher(self) -> "LLMatcher | None":
        """None where nothing may come any more."""
        if self.matcher is None and not self.problem:
            try:
                self.matcher = self.compiled.result()
            except FormatError as error:
                self._give_up(error.message)
        return None if self.problem else self.matcher

    def _renew(self, problem: str) -> None:
        """Try with a lexer of its own: the one that clones share may have met a limit by the work of all of them."""
        matcher = self.compile_anew()
        self.matcher = matcher
        if not matcher.consume_tokens(list(self.taken)):
            self._give_up(problem)

    def _give_up(self, problem: str) -> None:
        if not self.problem:
            self.problem = problem
            LOG.warning("the format of %s cannot be followed further: %s", self.attempt, problem)


def _fill(bits: Bits, matcher: "LLMatcher", drafts: Sequence[int]) -> str:
    """What went wrong, and then no token may come; empty where nothing did."""
    if drafts:
        matcher = matcher.deep_copy()
    for place, line in enumerate(bits):
        if place:
            matcher.consume_token(drafts[place - 1])
        matcher.unsafe_compute_mask_ptr(line.ctypes.data, line.nbytes)
        if matcher.is_error():  # the mask would allow the end
            bits.fill(0)
            return matcher.get_error().partition("\n")[0]
    return ""


class GuidedRow(Protocol):
    """A row as far as its guide must know it."""

    token_ids: "array[int]"
    num_prompt_tokens: int
    guide: Guide | None


@dataclass(frozen=True, slots=True)
class Turn:
    """One row's part in a step: tokens that its guide has not taken in yet, and the drafts that it tries."""

    guide: Guide
    token_ids: tuple[int, ...]
    pending: tuple[PendingToken, ...]
    drafts: tuple[int, ...]


class Guides:
    """Follows the formats of an executor's rows.

    A row whose format cannot be followed further may draw nothing: it fails as one whose logits are not finite, alone.

    Owns: the threads that compile and mask, made with the first format.
    Invariant: one step's masks are computed before the next step's are begun, and no guide changes in between.
    """

    def __init__(self, compiler: FormatCompiler, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._threads: ThreadPoolExecutor | None = None

    def warm_up(self) -> None:
        """Read the vocabulary ahead of the first format; where that fails, formats will say why."""
        if self._compiler.can_compile:
            try:
                self._compiler.load()
            except FormatError as error:
                LOG.warning("answers cannot have formats here: %s", error)

    def open(self, attempt: AttemptId, sampling: SamplingParams) -> Guide | None:
        """A guide for a row that joins, None where its answer is free. Compiling begins; nobody waits for it yet."""
        if sampling.format is None:
            return None
        compiled = self._pool().submit(self._compiler.compile, sampling.format)
        return Guide(attempt, sampling, compiled, partial(self._compiler.compile_anew, sampling.format))

    def fitting(self, row: GuidedRow, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """The drafts that a row's format allows; the row has no pending token."""
        if row.guide is None or not drafts:
            return drafts
        num_fitting = 0
        with row.guide.guarded():
            row.guide.take(_untaken(row, row.guide))
            num_fitting = row.guide.num_fitting(drafts, self._eos)
        return drafts[:num_fitting]

    def begin(self, rows: Sequence[tuple[GuidedRow, tuple[int, ...]]]) -> "Future[Masks] | None":
        """Begin the masks of a step in which these rows sample, each with its drafts; None where none is guided."""
        if all(row.guide is None for row, _ in rows):
            return None
        lines, turns, first = list[int](), list[Turn](), 0
        for row, drafts in rows:
            if row.guide is not None:
                turns.append(_turn(row, row.guide, drafts))
                lines += range(first, first + 1 + len(drafts))
            first += 1 + len(drafts)
        return self._pool().submit(self._masks, tuple(lines), turns)

    def close(self) -> None:
        """End the threads. Twice is fine."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _masks(self, lines: tuple[int, ...], turns: Sequence[Turn]) -> Masks:
        bits, first = empty_bits(len(lines), self._vocab_size), 0
        for turn in turns:
            guide, end = turn.guide, first + 1 + len(turn.drafts)
            with guide.guarded():
                guide.take(turn.token_ids)
                guide.take(token.read() for token in turn.pending)
                guide.fill(bits[first:end], turn.drafts, self._ends(guide))
            if guide.problem:
                bits[first:end] = 0
            first = end
        return Masks(lines, bits)

    def _ends(self, guide: Guide) -> Sequence[int]:
        return tuple(token for token in {*self._eos, *guide.sampling.stop_token_ids} if token < self._vocab_size)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_THREADS, "guides")
        return self._threads


def _turn(row: GuidedRow, guide: Guide, drafts: tuple[int, ...]) -> Turn:
    num_known = len(row.token_ids) - row.num_prompt_tokens
    pending = tuple(guide.pending)[max(0, len(guide.taken) - num_known) :]
    return Turn(guide, tuple(_untaken(row, guide)), pending, drafts)


def _untaken(row: GuidedRow, guide: Guide) -> Sequence[int]:
    return row.token_ids[row.num_prompt_tokens + len(guide.taken) :]


def _before(drafts: Sequence[int], ends: frozenset[int]) -> list[int]:
    """What comes before the first end token."""
    first = next((place for place, token in enumerate(drafts) if token in ends), len(drafts))
    return list(drafts[:first])
