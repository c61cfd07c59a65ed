"""The planner as a process of its own: it answers, and where it cannot, nothing else stops."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.live import planning
from cluster.live.planning import Planning
from core.costs import NodeCosts
from core.events import Tick
from core.ids import LayoutId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import SLO
from core.whatif import WhatIfAnswered, WhatIfAsked

KV = KVLayout(4, 2, 32, 16, "float32")
COSTS = NodeCosts(0.004, 0.0045, 2e-5, 4e-10, 2e-6, 3e-8)


def question(number: int) -> WhatIfAsked:
    """Two nodes, two candidates, twenty requests."""
    spec = NodeSpec(LayoutId("l"), KV, 4000, 4096, mix_of("mixed", 256, 8), COSTS)
    candidates = ((mix_of("mixed", 256, 8),) * 2, (mix_of("prefill", 256, 8), mix_of("decode", 256, 8)))
    times = tuple(i / 5 for i in range(20))
    return WhatIfAsked(number, (spec, spec), candidates, times, (200,) * 20, (10,) * 20, 0.0, SLO(1.0, 0.1), 1e9)


async def asked(
    plans: Planning, answers: list[WhatIfAnswered], wait_s: float, look: Callable[[], object] = lambda: None
) -> None:
    """Asks, waits for the first answer, and looks while the planner is there."""
    plans.handle(Tick(), time.monotonic())
    plans.handle(question(1), time.monotonic())
    end = time.monotonic() + wait_s
    while not answers and time.monotonic() < end:
        await asyncio.sleep(0.02)
    look()
    await plans.stop()
    await plans.stop()


def test_a_question_is_answered_by_another_process() -> None:
    answers: list[WhatIfAnswered] = []

    async def run() -> None:
        await asked(Planning(answers.append), answers, 60.0)

    asyncio.run(run())
    assert answers[0].ask == 1
    assert len(answers[0].goodputs_rps) == 2
    assert min(answers[0].goodputs_rps) > 4.0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc, which is Linux's")
def test_the_planner_takes_only_what_others_leave() -> None:
    answers: list[WhatIfAnswered] = []
    seen: list[int] = []

    def look() -> None:
        for pid in children(os.getpid()):
            if b"cluster.planner" in Path(f"/proc/{pid}/cmdline").read_bytes():
                group = Path(f"/proc/{pid}/autogroup")
                seen.append(os.getpriority(os.PRIO_PROCESS, pid))
                if group.exists() and (words := group.read_text().split()):
                    seen.append(int(words[-1]))

    async def run() -> None:
        await asked(Planning(answers.append), answers, 60.0, look)

    mine = os.getpriority(os.PRIO_PROCESS, 0)
    asyncio.run(run())
    assert set(seen) == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


def children(parent: int) -> list[int]:
    """Process ids of all that it started."""
    stats = {int(each.name): each / "stat" for each in Path("/proc").glob("[0-9]*")}
    found = []
    for pid, stat in stats.items():
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(pid)
    return found


def test_a_planner_that_cannot_run_is_said_and_nothing_else_happens(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[WhatIfAnswered] = []

    async def run() -> None:
        await asked(Planning(answers.append, "cluster.no_such_planner"), answers, 0.6)

    asyncio.run(run())
    assert answers == []
    assert planning.RESTART_AFTER_S > 1.0
    assert "plans go on without" in caplog.text
