"""Readers of the transport `gloo`, and somebody who takes the place of their owner."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from core.ids import NodeId
from kv_transfer import pairs
from kv_transfer.control import Control
from kv_transfer.faults import NoFaults
from kv_transfer.frames import Kind
from kv_transfer.gloo import GlooTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
from kv_transfer.pairs import GlooPairs
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding
from tests.transports.conftest import LENDER, READER
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, LocalLender


@contextmanager
def reader(node: NodeId = READER, token: bytes = TOKEN, max_pairs: int = 16) -> Iterator[tuple[GlooTransport, Slab]]:
    options = PairOptions(NoFaults(), max_pairs)
    with Slab.anonymous(SMALL, "reader") as slab:
        transport = GlooTransport(node, LAYOUT, HostBlocks(slab), "127.0.0.1", token, options)
        try:
            yield transport, slab
        finally:
            transport.close()


def served(lender: LocalLender) -> dict[str, int]:
    assert isinstance(lender.transport, GlooTransport)
    return lender.transport.refusals.counts()


@contextmanager
def gloo() -> Iterator[GlooPairs]:
    kind = GlooPairs("127.0.0.1")
    yield kind
    kind.close()


def opened(guest: Control) -> pairs.Pair:
    guest.send(5, Kind.OPEN, 1)
    with gloo() as kind:
        return pairs.Pair(kind, guest, pairs.READER, 1, torch.empty(1, dtype=torch.uint8))


@contextmanager
def impostor(act: Callable[[Control], None]) -> Iterator[Binding]:
    """Somebody at the lender's address who does `act` with the one reader that comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _ = listener.accept()
        guest = Control(link)
        with contextlib.suppress(OSError):
            act(guest)
        guest.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield Binding(LENDER, LAYOUT, SMALL, "gloo", f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()
    listener.close()
