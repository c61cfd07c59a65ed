"""One request of a batch to its end: asked again while what refuses it may pass."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.batches.input_lines import InputLine
from cluster.batches.result_log import LineAnswer

FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
PASSING = frozenset({408, 429, 502, 503, 504})
"""Statuses that another time may not have."""

MAX_FAULTS = 3
FAULTS = frozenset({"worker_lost", "step_failed", "kv_lost", "kv_corrupt", "internal"})
"""What is nobody's load: a request that takes nodes down is not sent to them for a day."""

Ask = Callable[[InputLine], Awaitable[LineAnswer]]


async def asked_to_its_end(ask: Ask, line: InputLine, slots: asyncio.Semaphore) -> LineAnswer:
    """The answer that counts. A slot is held only while the server has the request."""
    wait_s, num_faults = FIRST_WAIT_S, 0
    while True:
        async with slots:
            answer = await ask(line)
        num_faults += answer.code in FAULTS
        if not may_pass(answer, line) or num_faults >= MAX_FAULTS:
            return answer
        await asyncio.sleep(min(MAX_WAIT_S, max(wait_s, answer.retry_after_s or 0.0)))
        wait_s = min(MAX_WAIT_S, 2 * wait_s)


def may_pass(answer: LineAnswer, line: InputLine) -> bool:
    """Whether to ask again. A deadline that the request did not name itself is only the server's longest."""
    if answer.code == "deadline_exceeded":
        return b'"deadline_ms"' not in line.body
    if answer.code in FAULTS:
        return True
    return answer.status in PASSING and not answer.is_hopeless
