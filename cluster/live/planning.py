"""The planner's process as the head sees it: the last question goes in, its answer comes out some time later."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable

from cluster.codec import CodecError, decode, encode
from cluster.live.frames import frame_length
from core.events import Event
from core.whatif import WhatIfAnswered, WhatIfAsked

LOG = logging.getLogger("penstock.planner")
PROGRAM = "cluster.planner"
RESTART_AFTER_S = 30.0


class Planning:
    """Keeps a planner.

    Owns: its process, started with the first question, and the question that waits; a newer one takes its place.
    Nothing waits for it: where it dies, questions go unanswered until it is started again.
    """

    def __init__(self, tell: Callable[[WhatIfAnswered], None], program: str = PROGRAM) -> None:
        self._tell = tell
        self._program = program
        self._waiting: WhatIfAsked | None = None
        self._asked = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    def handle(self, event: Event, now: float) -> None:
        """Takes a question; ticks mean nothing here."""
        if not isinstance(event, WhatIfAsked):
            return
        self._waiting = event
        self._asked.set()
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Ends the process. Twice is fine."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    async def _serve(self) -> None:
        while True:
            try:
                await self._with_process()
            except (OSError, EOFError, ValueError, CodecError) as error:
                LOG.warning("the planner is gone, plans go on without: %s: %s", type(error).__name__, error)
            await asyncio.sleep(RESTART_AFTER_S)

    async def _with_process(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                question, self._waiting = self._waiting, None
                if question is not None:
                    self._tell(await _answer(process, question))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _answer(process: asyncio.subprocess.Process, question: WhatIfAsked) -> WhatIfAnswered:
    """Raises EOFError, OSError or CodecError where there is none."""
    assert process.stdin is not None and process.stdout is not None
    message = encode(question)
    process.stdin.write(len(message).to_bytes(4, "little") + message)
    await process.stdin.drain()
    length = frame_length(await process.stdout.readexactly(4))
    answer = decode(await process.stdout.readexactly(length))
    if not isinstance(answer, WhatIfAnswered):
        raise ValueError(f"it answered {type(answer).__name__}")
    return answer
