"""A scheduler's events and commands on file, with their times, so that they can be put through the same machine again.

A file is a row of MessagePack values: first `[KIND, version, setup]`, then `[now, event, [[to, event], …]]` for each
event that the scheduler took. Events are as `cluster.codec` writes them, but no prompt and no answer is in them: token
ids are left out, logs keep their length only, for a scheduler decides by lengths.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import msgpack

from cluster.codec import MAX_MESSAGE_BYTES, CodecError, decode, decode_as, encode, encode_as
from core.commands import Command, Tell
from core.errors import ConfigError
from core.events import Event, RequestArrived, RequestResumed, SchedulerEvent, Submitted
from core.ids import Address
from core.request import Request
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.policies.build import policy_of
from scheduler.scheduler import Scheduler

LOG = logging.getLogger("penstock.recording")
KIND = "penstock scheduler record"
VERSION = 1
FLUSH_EVERY = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """What a scheduler is made of."""

    policy: str
    config: SchedulerConfig
    controller: ControllerConfig | None

    def scheduler(self) -> Scheduler:
        """A new one."""
        controller = Controller(self.controller) if self.controller else None
        return Scheduler(self.config, policy_of(self.policy, self.config), controller)


@dataclass(frozen=True, slots=True)
class Told:
    """One command of a scheduler: it only tells."""

    to: Address
    event: Event

    def __str__(self) -> str:
        return f"tell {self.to} {self.event}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One event with its time, and what the scheduler answered."""

    now: float
    event: SchedulerEvent
    told: tuple[Told, ...]


class Decides(Protocol):
    """A scheduler, as a recorder sees it."""

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """Take one event."""


class Recorder:
    """Stands before a scheduler and writes down what it hears and says, up to `max_bytes`.

    Owns: the file. Raises ConfigError where it cannot be written at the start; later failures end the record, not the
    scheduler.
    """

    def __init__(self, scheduler: Decides, setup: Setup, path: Path, max_bytes: int) -> None:
        self._scheduler = scheduler
        self._left = max_bytes
        self._path = path
        self._num = 0
        try:
            head = msgpack.packb([KIND, VERSION, encode_as(Setup, setup)])
            self._file: BinaryIO | None = path.open("wb")
            self._file.write(head)
        except (OSError, CodecError) as error:
            raise ConfigError([f"--record {path}: cannot be written: {error}"]) from error

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """Hand the event on; the scheduler's own commands."""
        commands = self._scheduler.handle(event, now)
        if self._file is not None:
            self._note(event, now, commands)
        return commands

    def close(self) -> None:
        """The record ends here. Twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _note(self, event: SchedulerEvent, now: float, commands: Sequence[Command]) -> None:
        assert self._file is not None
        try:
            data = _packed(event, now, commands)
            if len(data) > self._left:
                LOG.warning("%s has its full size: nothing more is recorded", self._path)
                self.close()
                return
            self._left -= len(data)
            self._file.write(data)
            self._num += 1
            if self._num % FLUSH_EVERY == 0:
                self._file.flush()
        except (OSError, CodecError) as error:
            LOG.warning("%s: nothing more is recorded: %s", self._path, error)
            self.close()


def read_record(path: Path) -> tuple[Setup, Iterator[Entry]]:
    """The setup and the entries of a record; entries are read as they are asked for, one cut off at the end is left
    out. Raises ConfigError, and so do the entries."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=len(data) + 1, max_bin_len=MAX_MESSAGE_BYTES)
    unpacker.feed(data)
    try:
        head = next(iter(unpacker), None)
    except ValueError:
        head = None
    if not (isinstance(head, tuple) and len(head) == 3 and head[0] == KIND):
        raise ConfigError([f"{path}: is no record of `penstock serve --record`"])
    if head[1] != VERSION:
        raise ConfigError([f"{path}: version {head[1]!r} of the record is not read here; this is version {VERSION}"])
    try:
        setup = decode_as(Setup, head[2])
    except CodecError as error:
        raise ConfigError([f"{path}: was written by another build: {error.message}"]) from error
    return setup, _entries(path, unpacker)


def bare(event: Event) -> Event:
    """An event without any token of a client, and without the format of an answer, which is a client's text as well."""
    match event:
        case RequestArrived(request=request):
            return replace(event, request=_bare(request))
        case Submitted(request=request, log=log):
            return replace(event, request=_bare(request), log=bytes(len(log)))
        case RequestResumed(log=log):
            return replace(event, log=bytes(len(log)))
    return event


def _bare(request: Request) -> Request:
    return replace(request, token_ids=b"", sampling=replace(request.sampling, format=None))


def _packed(event: SchedulerEvent, now: float, commands: Sequence[Command]) -> bytes:
    told = [[command.to, encode(bare(command.event))] for command in commands if isinstance(command, Tell)]
    packed: bytes = msgpack.packb([now, encode(bare(event)), told])
    return packed


def _entries(path: Path, unpacker: msgpack.Unpacker) -> Iterator[Entry]:
    for place, raw in enumerate(unpacker, 1):
        try:
            now, event, told = raw
            pairs = tuple(Told(to, decode(said)) for to, said in told)
            yield Entry(float(now), decode(event), pairs)  # type: ignore[arg-type]
        except (CodecError, ValueError, TypeError) as error:
            raise ConfigError([f"{path}: entry {place} cannot be read: {error}"]) from error
