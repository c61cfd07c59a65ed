"""Where batches are kept, and how large they may be."""

from dataclasses import dataclass
from pathlib import Path

MB = 1_000_000
DEFAULT_MAX_FILE_MB = 200
DEFAULT_MAX_LINES = 50_000
DEFAULT_MAX_CONCURRENT = 64


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """`max_file_bytes` and `max_lines` bound one input, and are OpenAI's; `max_concurrent` the requests at work.

    `max_stored_bytes` bounds all files of one key, inputs and results together.
    """

    folder: Path
    max_file_bytes: int = DEFAULT_MAX_FILE_MB * MB
    max_lines: int = DEFAULT_MAX_LINES
    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    max_stored_bytes: int = 50 * DEFAULT_MAX_FILE_MB * MB
    max_files: int = 1000
    max_open_batches: int = 64
