"""Rows with formats on a GPU, by matchers that need no library: masks there, and steps that overlap."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.ids import AttemptId
from core.request import AnswerFormat, FormatKind
from core.step import StepPlan
from engine.masks import empty_bits, restrict
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt

pytestmark = pytest.mark.gpu


class Ladder:
    """A stand-in for a compiled format: after token t only those may come that are t + 1 to t + 9, in a circle.

    Catches a mask made from another token than the one that was drawn: one step too early, of another row, or lost.
    """

    def __init__(self, vocab_size: int, last: int = 0) -> None:
        self._vocab_size = vocab_size
        self._last = last

    def unsafe_compute_mask_ptr(self, pointer: int, num_bytes: int) -> None:
        flags = np.zeros(8 * num_bytes, np.uint8)
        flags[[(self._last + step) % self._vocab_size for step in range(1, 10)]] = 1
        data = np.packbits(flags, bitorder="little").tobytes()
        ctypes.memmove(pointer, data, num_bytes)

    def consume_token(self, token: int) -> bool:
        is_allowed = 1 <= (token - self._last) % self._vocab_size <= 9
        self._last = token
        return is_allowed

    def is_error(self) -> bool:
        return False

    def deep_copy(self) -> "Ladder":
        return Ladder(self._vocab_size, self._last)


def guided(run: Bench, num_in_flight: int, num_steps: int = 24) -> dict[str, list[int]]:
    """Answers of rows, some of them guided, with up to `num_in_flight` steps launched before one is collected."""
    vocab = run.executor._rows._vocab_size
    rows = {f"{number}#0": prompt(20 + number, number) for number in range(6)}
    answers: dict[str, list[int]] = {row: [] for row in rows}
    joined = []
    for number, (row, ids) in enumerate(rows.items()):
        wanted = AnswerFormat(FormatKind.REGEX, "x") if number % 3 else None
        joined.append(run.join(row, ids, room=num_steps, temperature=1.0, seed=number, format=wanted))
    run.executor._guides._compiler.compile = lambda wanted: Ladder(vocab)  # type: ignore[method-assign,assignment,return-value]
    plans = [StepPlan(1, tuple(map(AttemptId, rows)), tuple(map(len, rows.values())), joined=tuple(joined))]
    plans += [StepPlan(2 + step, tuple(map(AttemptId, rows)), (1,) * len(rows)) for step in range(num_steps)]
    launched = []
    for plan in plans:
        launched.append(run.executor.launch(plan))
        if len(launched) == num_in_flight:
            _collect(launched.pop(0).collect(), answers)
    for each in launched:
        _collect(each.collect(), answers)
    run.executor.run(StepPlan(99, (), (), left=tuple(map(AttemptId, rows))))
    return answers


def _collect(result: object, answers: dict[str, list[int]]) -> None:
    for attempt, token in zip(result.attempts, result.token_ids, strict=True):  # type: ignore[attr-defined]
        answers[attempt].append(token)


def test_masks_restrict_on_the_device_as_on_the_cpu(device: str) -> None:
    logits, bits = torch.randn(5, 515), empty_bits(3, 515)
    bits[:] = np.random.default_rng(1).integers(-(2**31), 2**31, bits.shape, np.int32, endpoint=False)
    there = logits.to(device)
    for each in (logits, there):
        restrict(each, [4, 0, 2], bits)
    assert torch.equal(there.cpu(), logits)


@pytest.mark.parametrize("num_in_flight", [1, 2])
def test_each_mask_is_made_from_the_token_before_it_also_where_steps_overlap(
    num_in_flight: int, gpu: Bench, make: Callable[..., Bench], device: str
) -> None:
    found = guided(gpu, num_in_flight)
    for number, (row, tokens) in enumerate(found.items()):
        steps = np.diff([0, *tokens]) % 515
        assert len(tokens) == 25
        assert (number % 3 == 0) or ((steps >= 1) & (steps <= 9)).all(), row
    assert found == guided(make(device), 1)
