"""Pairs: torch.distributed worlds of two, made lazily as objects (never a process's one default group), few at a time.

Rank 0 is the owner and sends, rank 1 the reader. How the two find each other travels over their control connection,
which has proven both, so no store listens anywhere and no port is fixed.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from kv_transfer.control import Control
from kv_transfer.frames import BadFrame, Kind

OWNER, READER = 0, 1
PROGRESS_S = 2.0
"""A piece that has not arrived whole after this is a stall; pieces are sized so that an honest link needs far less."""

MAX_PAIRS = 32
LOOK_AGAIN_S = 0.005
MAX_VALUE_BYTES = 64 << 10
MAX_KEYS = 64


class PairBroken(Exception):
    """A pair failed, stalled, or could not be made. It is not used again."""


class Work(Protocol):
    """A send or receive that was begun."""

    def wait(self, timeout: timedelta = ...) -> bool:
        """Blocks until the bytes are there, or on their way. Raises RuntimeError where the pair failed or stalled."""
        ...

    def is_completed(self) -> bool:
        """Whether it has ended; not every backend knows before `wait`."""
        ...


class World(Protocol):
    """A process group of two."""

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Work:
        """Begins to send."""
        ...

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Work:
        """Begins to receive."""
        ...


class PairKind(Protocol):
    """A backend: what makes the worlds."""

    @property
    def name(self) -> str:
        """As the transport is called."""
        ...

    def make(self, store: Store, rank: int) -> World:
        """A world; blocks until both sides are there. Raises whatever the backend does."""
        ...

    def wait(self, work: Work, limit_s: float) -> None:
        """Blocks until the work has ended. Raises RuntimeError where it failed or took too long: the pair is over."""
        ...

    def end(self, world: World) -> None:
        """Let go of it without waiting for the other side."""
        ...

    def close(self) -> None:
        """Give back what the worlds shared."""
        ...


class ControlStore(Store):  # type: ignore[misc, unused-ignore]
    """What both sides of a new pair tell each other, carried by their control connection instead of a server.

    Owns: the values of one pair. Only the thread that makes the pair waits in it; afterwards it answers from what it
    has, as a backend's own threads may still ask.
    """

    def __init__(self, control: Control, number: int) -> None:
        super().__init__()
        self._control: Control | None = control
        self._number = number
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        """Keep it, and tell the other side."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._values[key] = data
        if self._control is not None:
            self._control.send(PROGRESS_S, Kind.KEY, self._number, key, data)

    def get(self, key: str) -> bytes:
        """The value; waits for the other side to tell it."""
        self._receive_until([key])
        return self._values[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:  # type: ignore[override, unused-ignore]
        """Until all are there."""
        self._receive_until(keys)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there now."""
        return all(key in self._values for key in keys)

    def add(self, key: str, value: int) -> int:
        """Counts on this side only, which is all that backends of two need."""
        total = int(self._values.get(key, b"0")) + value
        self._values[key] = str(total).encode()
        return total

    def delete_key(self, key: str) -> bool:
        """Forget it on this side."""
        return self._values.pop(key, None) is not None

    def detach(self) -> None:
        """The pair stands: the connection is for other frames from now on."""
        self._control = None

    def _receive_until(self, keys: Sequence[str]) -> None:
        while missing := [key for key in keys if key not in self._values]:
            if self._control is None or len(self._values) >= MAX_KEYS:
                raise RuntimeError(f"the other side of the pair never told {missing[0]}")
            fields = self._control.receive_only(Kind.KEY, PROGRESS_S, MAX_VALUE_BYTES)
            number, key, value = cast(tuple[int, str, bytes], fields)
            if number != self._number:
                raise BadFrame("order", f"a key of pair {number} while pair {self._number} is made")
            self._values[key] = value


class Pair:
    """One world of two.

    Owns: the world, and the store that its threads may ask.
    Invariant: one thread at a time; after any error only `close`.
    """

    def __init__(self, kind: PairKind, control: Control, rank: int, number: int, first: Tensor) -> None:
        self._kind = kind
        self._other = READER if rank == OWNER else OWNER
        self._store = ControlStore(control, number)
        self._world: World | None = None
        try:
            self._world = kind.make(self._store, rank)
            self._prove(rank, first)
        except (RuntimeError, OSError, BadFrame, PairBroken) as error:
            self.close()
            raise PairBroken(f"a pair of {kind.name} cannot be made: {_first_line(error)}") from error
        finally:
            self._store.detach()

    def _prove(self, rank: int, first: Tensor) -> None:
        """Move a little at once: some backends meet only then, and it must be while the store still listens."""
        self.wait(self.send(first.zero_()) if rank == OWNER else self.receive(first))

    def send(self, packed: Tensor) -> Work:
        """Begin to send; the tensor stays untouched until the work has been waited for."""
        return self._begin("send", packed)

    def receive(self, packed: Tensor) -> Work:
        """Begin to receive; the tensor is the pair's until the work has been waited for."""
        return self._begin("recv", packed)

    def _begin(self, deed: str, packed: Tensor) -> Work:
        if self._world is None:
            raise PairBroken("the pair is closed")
        try:
            work: Work = getattr(self._world, deed)([packed], self._other, 0)
            return work
        except RuntimeError as error:
            raise PairBroken(f"{self._kind.name}: {_first_line(error)}") from error

    def wait(self, work: Work, limit_s: float = PROGRESS_S) -> None:
        """Raises PairBroken when it failed, or has not ended within the limit: the backend then aborts the pair."""
        try:
            self._kind.wait(work, limit_s)
        except RuntimeError as error:
            raise PairBroken(f"{self._kind.name}: {_first_line(error)}") from error

    def close(self) -> None:
        """Let go of it; what was begun and not waited for is lost. Twice is fine."""
        world, self._world = self._world, None
        if world is not None:
            self._kind.end(world)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class Holder(Protocol):
    """Who has a pair open, and may have to give it up to somebody else."""

    def give_up_pair(self) -> bool:
        """Close the pair unless it is in use; returns whether it did."""
        ...


class PairBook:
    """The open pairs of one node, all peers and both directions together.

    Owns: the order in which they were last used, and the bound on their number.
    """

    def __init__(self, max_pairs: int = MAX_PAIRS) -> None:
        self._max_pairs = max_pairs
        self._open: OrderedDict[Holder, None] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, holder: Holder) -> None:
        """Make room for one more, at the cost of the one that was idle longest; waits a little where all are busy.

        Raises: PairBroken when they stay so.
        """
        late_at = time.monotonic() + PROGRESS_S / 2
        while not self._try_admit(holder):
            if time.monotonic() > late_at:
                raise PairBroken(f"all {self._max_pairs} pairs of this node are in use")
            time.sleep(LOOK_AGAIN_S)

    def _try_admit(self, holder: Holder) -> bool:
        with self._lock:
            while len(self._open) >= self._max_pairs:
                idle = next((other for other in self._open if other is not holder and other.give_up_pair()), None)
                if idle is None:
                    return False
                del self._open[idle]
            self._open[holder] = None
            return True

    def use(self, holder: Holder) -> None:
        """It is the one used last, now."""
        with self._lock:
            if holder in self._open:
                self._open.move_to_end(holder)

    def forget(self, holder: Holder) -> None:
        """It has closed its pair. Twice is fine."""
        with self._lock:
            self._open.pop(holder, None)

    def num_open(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._open)


class GlooPairs:
    """Pairs of gloo, over sockets of this node's own address; the tensors are on the host.

    Owns: the device, which is a listening socket of the kernel's choice and a thread, shared by all pairs. The device
    is made for an address, so no environment variable chooses the interface.
    """

    name = "gloo"

    def __init__(self, host: str) -> None:
        from torch.distributed import ProcessGroupGloo

        self._gloo = ProcessGroupGloo
        self._options = ProcessGroupGloo._Options()  # type: ignore[attr-defined, unused-ignore]
        self._options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        self._options._timeout = timedelta(seconds=PROGRESS_S)
        self._options._threads = 1

    def make(self, store: Store, rank: int) -> World:
        """A group of two."""
        return cast(World, self._gloo(store, rank, 2, self._options))

    def wait(self, work: Work, limit_s: float) -> None:
        """Gloo closes the pair where the limit is passed."""
        work.wait(timedelta(seconds=limit_s))

    def end(self, world: World) -> None:
        """It closes its sockets when the last reference goes, which is the caller's."""

    def close(self) -> None:
        """Let go of the device."""
        self._options._devices = []


def is_available(name: str) -> bool:
    """Whether this build of torch has a backend."""
    distributed = torch.distributed
    return distributed.is_available() and bool(getattr(distributed, f"is_{name}_available")())
