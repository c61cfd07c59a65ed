"""One batch from where it is to its end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from cluster.batches.asking import Ask, asked_to_its_end
from cluster.batches.file_store import BATCH_OUTPUT, FileStore
from cluster.batches.input_lines import InputLine, LineProblem, check_input, raw_lines, read_line
from cluster.batches.records import BatchRecord, BatchStatus
from cluster.batches.result_log import LineAnswer, ResultLog, usage_in

SYNC_S = 1.0
READ_LINES, READ_BYTES = 64, 1 << 20
"""Lines read ahead on a thread, and no more: an input may be larger than what is kept in memory."""

EXPIRED = ("batch_expired", "the batch's completion window was over before this request was answered")
CANCELLED = ("batch_cancelled", "the batch was cancelled before this request was answered")
T = TypeVar("T")
Keep = Callable[[BatchRecord], None]
"""Puts a batch's record on disk."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What runs share: where files are, how records are kept, the slots of all batches together, and the wall clock."""

    files: FileStore
    keep: Keep
    slots: asyncio.Semaphore
    max_concurrent: int
    clock: Callable[[], float] = time.time


class BatchRun:
    """Answers every line of a batch exactly once. Owns: its record, its two logs, and its open requests.

    What was answered before a crash is not asked again; what was only asked is. `stop` leaves all as a crash would.
    """

    def __init__(self, record: BatchRecord, desk: Desk, ask: Ask) -> None:
        self.record = record
        self._desk = desk
        self._ask = ask
        self._output: ResultLog | None = None
        self._errors: ResultLog | None = None
        self._working: asyncio.Task[None] | None = None
        self._synced_at = 0.0
        self._syncing: asyncio.Task[None] | None = None

    @property
    def now(self) -> int:
        """Seconds since the epoch."""
        return int(self._desk.clock())

    def cancel(self) -> None:
        """No further request is asked; open ones are broken off. Twice is fine, and once it is over, too."""
        if self.record.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            self._become(BatchStatus.CANCELLING, replace(self.record, ending=BatchStatus.CANCELLED))
            self._break_off()

    async def run(self) -> None:
        """Work until the batch is over. Raises OSError where the disk fails; then it goes on after a restart."""
        if self.record.status is BatchStatus.VALIDATING and not await self._is_sound():
            return
        try:
            await _on_thread(self._open_logs)
            if self.record.status is BatchStatus.IN_PROGRESS:
                await self._answer_in_time()
            if self.record.status is not BatchStatus.FINALIZING:
                await _on_thread(self._report_rest)
            await self._finish()
        finally:
            await self._close()

    async def _is_sound(self) -> bool:
        """Validate the input; a batch with an unsound one fails as a whole, before anything is asked."""
        path = self._desk.files.path(self.record.input_file)
        try:
            checked = await asyncio.to_thread(check_input, path, self.record.endpoint)
            problems, num_lines = checked.problems, checked.num_lines
        except OSError as error:
            problems, num_lines = (LineProblem("file_lost", f"the input cannot be read: {error.strerror}"),), 0
        if self.record.status is not BatchStatus.VALIDATING:
            return True  # cancelled meanwhile: of lines that nobody looked at none is reported
        if problems:
            self._become(BatchStatus.FAILED, replace(self.record, problems=problems))
            return False
        self._become(BatchStatus.IN_PROGRESS, replace(self.record, num_lines=num_lines))
        return True

    def _open_logs(self) -> None:
        files, record = self._desk.files, self.record
        self._output = ResultLog(files.path(record.output_file), record.id)
        self._errors = ResultLog(files.path(record.error_file), record.id)
        assert not self._output.answered & self._errors.answered, f"{record.id}: a request has two answers"
        self._count()

    async def _answer_in_time(self) -> None:
        """All lines, or as many as the window allows."""
        self._working = asyncio.create_task(self._answer_all())
        left_s = self.record.expires_at - self._desk.clock()
        expiry = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expire)
        try:
            await asyncio.wait((self._working,))
            if not self._working.cancelled():
                self._working.result()
        finally:
            expiry.cancel()
            self._break_off()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working

    def _expire(self) -> None:
        self.record = replace(self.record, ending=BatchStatus.EXPIRED)
        self._break_off()

    def _break_off(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def _answer_all(self) -> None:
        """So many lines at a time as may be asked at once; a line that waits to be asked again keeps its place."""
        places = asyncio.Semaphore(self._desk.max_concurrent)
        async with asyncio.TaskGroup() as group, contextlib.aclosing(self._unanswered()) as lines:
            async for line in lines:
                await places.acquire()
                group.create_task(self._answer(line, places))

    async def _unanswered(self) -> AsyncGenerator[InputLine, None]:
        with contextlib.closing(self._lines()) as lines:
            while taken := await _on_thread(lambda: self._next_of(lines)):
                for line in taken:
                    yield line

    def _next_of(self, lines: Iterator[tuple[int, bytes]]) -> list[InputLine]:
        """The next lines, as many as may be read ahead; none at the end."""
        taken, num_bytes = list[InputLine](), 0
        for number, data in lines:
            time.sleep(0)  # whoever streams tokens in this process comes first
            taken.append(read_line(number, data, self.record.endpoint))
            num_bytes += len(data)
            if len(taken) >= READ_LINES or num_bytes >= READ_BYTES:
                break
        return taken

    def _lines(self) -> Generator[tuple[int, bytes], None, None]:
        assert self._output is not None and self._errors is not None
        done = self._output.answered | self._errors.answered
        with contextlib.closing(raw_lines(self._desk.files.path(self.record.input_file))) as lines:
            yield from ((number, data) for number, data in lines if number not in done)

    async def _answer(self, line: InputLine, places: asyncio.Semaphore) -> None:
        try:
            answer = await asked_to_its_end(self._ask, line, self._desk.slots)
            self._note(line, answer)
        finally:
            places.release()

    def _note(self, line: InputLine, answer: LineAnswer) -> None:
        assert self._output is not None and self._errors is not None
        (self._output if answer.is_ok else self._errors).add(line, answer)
        self._count()
        now = time.monotonic()
        if now - self._synced_at >= SYNC_S and (self._syncing is None or self._syncing.done()):
            self._synced_at = now
            self._syncing = asyncio.create_task(asyncio.to_thread(self._sync))

    def _sync(self) -> None:
        assert self._output is not None and self._errors is not None
        self._output.sync()
        self._errors.sync()

    def _report_rest(self) -> None:
        """Every line without an answer is told as one that was not asked to its end."""
        assert self._errors is not None
        if not self.record.num_lines:
            return
        code, message = EXPIRED if self.record.ending is BatchStatus.EXPIRED else CANCELLED
        for number, data in self._lines():
            time.sleep(0)
            custom_id = read_line(number, data, self.record.endpoint).custom_id
            self._errors.add_unasked(number, custom_id, code, message)
        self._count()

    def _count(self) -> None:
        assert self._output is not None and self._errors is not None
        num_answered, num_failed = len(self._output.answered), len(self._errors.answered)
        self.record = replace(self.record, num_answered=num_answered, num_failed=num_failed)

    async def _finish(self) -> None:
        """All answers are on disk before the record says that they are."""
        await _on_thread(self._sync)
        if self.record.status is not BatchStatus.FINALIZING:
            self._become(BatchStatus.FINALIZING, self.record)
        await _on_thread(self._keep_results)
        self._become(self.record.ending, self.record)

    def _keep_results(self) -> None:
        files, record = self._desk.files, self.record
        usage = usage_in(files.path(record.output_file))
        for name, kind in ((record.output_file, "output"), (record.error_file, "error")):
            if files.path(name).stat().st_size:
                files.keep(name, record.owner, f"{record.id}_{kind}.jsonl", BATCH_OUTPUT)
            else:
                files.path(name).unlink()
        self.record = replace(self.record, usage=usage)

    def _become(self, status: BatchStatus, record: BatchRecord) -> None:
        moments = replace(record.moments, **{f"{status.value}_at": self.now})
        self.record = replace(record, status=status, moments=moments)
        self._desk.keep(self.record)

    async def _close(self) -> None:
        if self._syncing is not None:
            await asyncio.gather(self._syncing, return_exceptions=True)
        for log in (self._output, self._errors):
            if log is not None:
                log.close()


async def _on_thread(work: Callable[[], T]) -> T:
    """Done by a thread, which is waited for even where whoever waits is cancelled: it has files open."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        raise
