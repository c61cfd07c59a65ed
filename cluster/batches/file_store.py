"""Files on disk, each with its owner: uploads, and what batches wrote."""

import fcntl
import os
import secrets
import time
from pathlib import Path

from cluster.batches.config import BatchConfig
from cluster.batches.records import StoredFile, read_file_record, sync_folder, write_whole
from cluster.gateway.errors_wire import FieldError, echoed
from core.errors import ConfigError, QuotaExceeded

BATCH, BATCH_OUTPUT = "batch", "batch_output"


class FileStore:
    """All files of a server. Owns: the folder `files`, and a lock on it while it is open.

    A file exists once its record does; bytes without one are a batch's that still runs, or left by a crash.
    """

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._folder = config.folder / "files"
        self._files: dict[str, StoredFile] = {}
        self._lock = -1

    def open(self) -> None:
        """Read what is there. Raises ConfigError where the folder cannot be had, or another server has it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._config.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ConfigError([f"--batch-dir {self._config.folder} is in use by another server"]) from error
        except OSError as error:
            raise ConfigError([f"--batch-dir {self._config.folder} cannot be used: {error.strerror}"]) from error
        records = (read_file_record(path) for path in self._folder.glob("*.json"))
        self._files = {record.id: record for record in sorted(records, key=lambda it: (it.created_at, it.id))}

    def close(self) -> None:
        """Somebody else may open it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def path(self, name: str) -> Path:
        """Where a file's bytes are; `name` is one minted here."""
        return self._folder / f"{name}.jsonl"

    def new_upload(self, owner: str) -> Path:
        """Where to put what comes. Raises QuotaExceeded where the owner has all that is allowed."""
        self.check_room(owner, 0)
        return self._folder / f"{secrets.token_hex(12)}.part"

    def check_room(self, owner: str, num_bytes: int) -> None:
        """Raises QuotaExceeded where so many more bytes are too many."""
        own, config = self.owned_by(owner), self._config
        if len(own) >= config.max_files:
            raise QuotaExceeded(f"this key has {len(own)} files, the most that are kept; delete some")
        if sum(file.num_bytes for file in own) + num_bytes > config.max_stored_bytes:
            limit = f"this key's files have the {config.max_stored_bytes} bytes that are kept at most"
            raise QuotaExceeded(f"{limit}; delete some")

    def take(self, upload: Path, owner: str, filename: str) -> StoredFile:
        """An upload that is whole and on disk becomes a file. Raises OSError."""
        name = new_file_name()
        upload.replace(self.path(name))
        sync_folder(self._folder)
        return self.keep(name, owner, filename, BATCH)

    def keep(self, name: str, owner: str, filename: str, purpose: str) -> StoredFile:
        """Bytes that are there become a file; doing it again changes nothing but the size. Raises OSError."""
        num_bytes = self.path(name).stat().st_size
        known = self._files.get(name)
        created_at = int(time.time()) if known is None else known.created_at
        record = StoredFile(name, owner, filename, purpose, num_bytes, created_at)
        write_whole(self._folder / f"{name}.json", record)
        self._files[name] = record
        return record

    def find(self, name: str, owner: str, field: str = "file_id") -> StoredFile:
        """A file of this owner; those of others are not seen. Raises FieldError."""
        found = self._files.get(name)
        if found is None or found.owner != owner:
            raise FieldError(field, f"there is no file {echoed(name)}", "not_found")
        return found

    def owned_by(self, owner: str) -> list[StoredFile]:
        """The owner's, oldest first."""
        return [file for file in self._files.values() if file.owner == owner]

    def delete(self, file: StoredFile) -> None:
        """Bytes and record. Raises OSError."""
        (self._folder / f"{file.id}.json").unlink(missing_ok=True)
        self.path(file.id).unlink(missing_ok=True)
        del self._files[file.id]

    def drop_strays(self, spoken_for: set[str]) -> None:
        """Delete bytes that are no file and no running batch's: what a crash left of uploads and deletions."""
        for path in (*self._folder.glob("*.part"), *self._folder.glob("*.new"), *self._folder.glob("*.jsonl")):
            if path.suffix != ".jsonl" or (path.stem not in self._files and path.stem not in spoken_for):
                path.unlink(missing_ok=True)


def new_file_name() -> str:
    """A name that nobody can guess."""
    return f"file-{secrets.token_hex(12)}"
