"""All batches of a server: made, looked at, cancelled, and gone on with after a restart."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.batches.batch_run import BatchRun, Desk
from cluster.batches.config import BatchConfig
from cluster.batches.file_store import BATCH, FileStore, new_file_name
from cluster.batches.input_lines import ENDPOINTS, InputLine
from cluster.batches.records import BatchRecord, BatchStatus, StoredFile, read_batch_record, write_whole
from cluster.batches.result_log import LineAnswer
from cluster.gateway.errors_wire import FieldError, echoed
from core.errors import QuotaExceeded

LOG = logging.getLogger("penstock.batches")
HOUR_S = 3600
MAX_WINDOW_H = 168
AGAIN_S = 60.0
"""So long a batch rests whose disk failed."""

AskFor = Callable[[str, InputLine], Awaitable[LineAnswer]]
"""Asks a line in the name of a key, named by its id."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks a batch to be."""

    owner: str
    endpoint: str
    input_file: str
    window: str
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """All batches that are kept: how many have which status, and their requests.

    `num_waiting` are of batches that are being worked on, neither asked nor answered yet; `num_failed` have their
    refusal, or why they were not asked.
    """

    statuses: tuple[tuple[BatchStatus, int], ...]
    num_waiting: int
    num_at_work: int
    num_answered: int
    num_failed: int


class Batches:
    """Every batch of one server. Owns: the records in the folder `batches`, the files, and the runs.

    To be used in one asyncio loop. Between `start` and `stop` open batches are worked on.
    """

    def __init__(self, config: BatchConfig, ask: AskFor, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.files = FileStore(config)
        self._ask = ask
        self._clock = clock
        self._desk = Desk(
            self.files, self._keep, asyncio.Semaphore(config.max_concurrent), config.max_concurrent, clock
        )
        self._records: dict[str, BatchRecord] = {}
        self._runs: dict[str, BatchRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._num_at_work = 0

    @property
    def counts(self) -> BatchCounts:
        """As they are now."""
        records = [self._now(record) for record in self._records.values()]
        answered, failed = sum(it.num_answered for it in records), sum(it.num_failed for it in records)
        open_lines = sum(it.num_lines - it.num_answered - it.num_failed for it in records if not it.is_over)
        statuses = Counter(it.status for it in records)
        return BatchCounts(
            tuple((status, statuses[status]) for status in BatchStatus),
            max(0, open_lines - self._num_at_work),
            self._num_at_work,
            answered,
            failed,
        )

    def open(self) -> None:
        """Read what is kept. Raises ConfigError where the folder cannot be had."""
        self.files.open()
        try:
            self._read()
        except BaseException:
            self.files.close()
            raise

    def _read(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.glob("*.new"):
            path.unlink()
        records = [read_batch_record(path) for path in self._folder.glob("*.json")]
        self._records = {record.id: record for record in sorted(records, key=lambda it: (it.created_at, it.id))}
        waiting = [record for record in records if not record.is_over]
        self.files.drop_strays({name for it in waiting for name in (it.input_file, it.output_file, it.error_file)})

    def start(self) -> None:
        """Go on with what is not over."""
        for record in self._records.values():
            if not record.is_over:
                self._begin(record)

    async def stop(self) -> None:
        """Break all off; a later server goes on. Twice is fine."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.files.close()

    def create(self, wanted: Wanted) -> BatchRecord:
        """A new batch, begun. Raises FieldError, QuotaExceeded."""
        hours = _hours(wanted.window)
        if wanted.endpoint not in ENDPOINTS:
            raise FieldError("endpoint", f"must be one of {', '.join(ENDPOINTS)}", "invalid_request")
        file = self.files.find(wanted.input_file, wanted.owner, "input_file_id")
        if file.purpose != BATCH:
            raise FieldError("input_file_id", "its purpose must be batch", "invalid_request")
        num_open = sum(not it.is_over for it in self.owned_by(wanted.owner))
        if num_open >= self.config.max_open_batches:
            raise QuotaExceeded(f"this key has {num_open} batches at work, the most at once", retry_after_s=AGAIN_S)
        self.files.check_room(wanted.owner, 0)
        now = int(self._clock())
        record = BatchRecord(
            id=f"batch_{secrets.token_hex(12)}",
            owner=wanted.owner,
            endpoint=wanted.endpoint,
            input_file=file.id,
            output_file=new_file_name(),
            error_file=new_file_name(),
            window=wanted.window,
            created_at=now,
            expires_at=now + hours * HOUR_S,
            metadata=wanted.metadata,
        )
        self._keep(record)
        self._begin(record)
        return record

    def find(self, name: str, owner: str) -> BatchRecord:
        """A batch of this owner as it is now; those of others are not seen. Raises FieldError."""
        record = self._records.get(name)
        if record is None or record.owner != owner:
            raise FieldError("batch_id", f"there is no batch {echoed(name)}", "not_found")
        return self._now(record)

    def owned_by(self, owner: str) -> list[BatchRecord]:
        """The owner's, oldest first."""
        return [self._now(record) for record in self._records.values() if record.owner == owner]

    def cancel(self, name: str, owner: str) -> BatchRecord:
        """Ask no further request of it. Raises FieldError for one that is over, or another's."""
        record = self.find(name, owner)
        if record.is_over:
            raise FieldError("batch_id", f"this batch is {record.status.value} already", "invalid_request")
        if (run := self._runs.get(name)) is not None:
            run.cancel()
        return self.find(name, owner)

    def delete_file(self, file: StoredFile) -> None:
        """Raises FieldError while a batch reads it."""
        reading = next((it for it in self._records.values() if it.input_file == file.id and not it.is_over), None)
        if reading is not None:
            raise FieldError("file_id", f"the batch {reading.id} reads it; cancel that first", "invalid_request")
        self.files.delete(file)

    @property
    def _folder(self) -> Path:
        return self.config.folder / "batches"

    def _now(self, record: BatchRecord) -> BatchRecord:
        run = self._runs.get(record.id)
        return record if run is None else run.record

    def _keep(self, record: BatchRecord) -> None:
        write_whole(self._folder / f"{record.id}.json", record)
        self._records[record.id] = record

    def _begin(self, record: BatchRecord) -> None:
        task = asyncio.create_task(self._work(record.id), name=record.id)
        self._tasks[record.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(record.id, None))

    async def _work(self, name: str) -> None:
        """A batch to its end; where the disk fails, again after a while."""
        owner = self._records[name].owner
        while not self._records[name].is_over:
            run = BatchRun(self._records[name], self._desk, lambda line: self._at_work(owner, line))
            self._runs[name] = run
            try:
                await run.run()
            except (OSError, ExceptionGroup) as error:
                LOG.error("batch %s rests for %g s: %s", name, AGAIN_S, _first(error))
                await asyncio.sleep(AGAIN_S)
            finally:
                del self._runs[name]

    async def _at_work(self, owner: str, line: InputLine) -> LineAnswer:
        self._num_at_work += 1
        try:
            return await self._ask(owner, line)
        finally:
            self._num_at_work -= 1


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _hours(window: str) -> int:
    digits = window.removesuffix("h")
    if window.endswith("h") and digits.isdecimal() and len(digits) <= 3 and 1 <= int(digits) <= MAX_WINDOW_H:
        return int(digits)
    problem = f"must be a whole number of hours from 1h to {MAX_WINDOW_H}h, as 24h, is {echoed(window)}"
    raise FieldError("completion_window", problem, "invalid_request")
