"""The cluster token on file: how a process that nobody of the cluster started gets to know it.

A file of 64 hexadecimal digits that only those may read whom it is for. The token never stands on a command line, in
the environment or in a log.
"""

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from cluster.live.handshake import TOKEN_BYTES, ClusterToken
from core.errors import ConfigError

FLAG = "--cluster-token-file"
STDIN = "-"
MAX_BYTES = 4096


def kept_token(path: Path) -> ClusterToken:
    """The token of a file; a new one is written there where there is none yet. Raises ConfigError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise ConfigError([f"{FLAG} {path} cannot be written: {error.strerror}"]) from error
    token = ClusterToken.mint()
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(token.secret.hex().encode() + b"\n")
    return token


def read_token(path: Path) -> ClusterToken:
    """The token of a file that is there. Raises ConfigError, also where others than its owner may read or change it."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise ConfigError([f"{FLAG} {path} cannot be read: {error.strerror}"]) from error
    if is_open(found, os.geteuid()):
        problem = f"{FLAG} {path} has mode {stat.S_IMODE(found.st_mode):04o}: others than its owner can get at it"
        raise ConfigError([f"{problem}; chmod 600 {path}"])
    return _parsed(data, str(path))


def token_from(place: str, stdin: BinaryIO | None = None) -> ClusterToken:
    """The token of a file, or for `-` of the standard input. Raises ConfigError."""
    if place != STDIN:
        return read_token(Path(place).expanduser())
    return _parsed((stdin or sys.stdin.buffer).read(MAX_BYTES), "(standard input)")


def is_open(found: os.stat_result, me: int) -> bool:
    """Whether a file can be got at by others than it is meant for. A file that somebody else has put there, such as a
    mounted secret, reaches us through its group; one of our own needs none."""
    others = stat.S_IRWXO | stat.S_IWGRP
    return bool(found.st_mode & (others | stat.S_IRWXG if found.st_uid == me else others))


def _parsed(data: bytes, place: str) -> ClusterToken:
    """What was read is never said back: it may be most of a token."""
    try:
        secret = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != TOKEN_BYTES:
        raise ConfigError([f"{FLAG} {place} must hold {2 * TOKEN_BYTES} hexadecimal digits and nothing else"])
    return ClusterToken(secret)
