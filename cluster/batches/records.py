"""What is kept of files and batches, and how it is kept: one small JSON file each, replaced whole."""

import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from cluster.batches.input_lines import LineProblem
from cluster.batches.result_log import BatchUsage
from core.errors import ConfigError


class BatchStatus(StrEnum):
    """OpenAI's words for where a batch is."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OVER = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that a key may ask for. `owner` is the key's id, empty where no keys are; times since the epoch."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Moments:
    """When a batch became what; seconds since the epoch, None: it did not."""

    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it is kept. `output_file` and `error_file` are named from the start, and exist where they have lines.

    `ending` is what it will be once its rest is reported: completed, expired or cancelled.
    """

    id: str
    owner: str
    endpoint: str
    input_file: str
    output_file: str
    error_file: str
    window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    ending: BatchStatus = BatchStatus.COMPLETED
    moments: Moments = field(default_factory=Moments)
    num_lines: int = 0
    num_answered: int = 0
    num_failed: int = 0
    problems: tuple[LineProblem, ...] = ()
    usage: BatchUsage | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.status in OVER


def write_whole(path: Path, record: StoredFile | BatchRecord) -> None:
    """On disk when this returns, or the file is as it was. Raises OSError."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Names in a folder are on disk when this returns."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_file_record(path: Path) -> StoredFile:
    """Raises ConfigError for what is none of ours."""
    try:
        return StoredFile(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ConfigError([f"--batch-dir: {path} is no file's record: {error}"]) from error


def read_batch_record(path: Path) -> BatchRecord:
    """Raises ConfigError for what is none of ours."""
    try:
        known = json.loads(path.read_bytes())
        known["status"], known["ending"] = BatchStatus(known["status"]), BatchStatus(known["ending"])
        known["moments"] = Moments(**known["moments"])
        known["problems"] = tuple(LineProblem(**each) for each in known["problems"])
        known["usage"] = None if known["usage"] is None else BatchUsage(**known["usage"])
        return BatchRecord(**known)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError([f"--batch-dir: {path} is no batch's record: {error}"]) from error
