"""Who is let in at a door, and what a reader believes of one: over a UNIX socket and over TCP."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Queue

import pytest

from core.errors import PeerLost
from core.ids import NodeId
from kv_transfer import guests, knock
from kv_transfer.door import Door
from kv_transfer.handshake import NONCE_BYTES, PROOF_BYTES, proof
from kv_transfer.knock import DONE, GREETING, LENGTH, READING, is_open
from tests.transports.lenders import TOKEN

OWNER, READER = NodeId("owner@1"), NodeId("reader@1")
HELLO = b"hello of the owner"


@pytest.fixture(params=[None, "127.0.0.1"], ids=["unix", "tcp"])
def host(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


class Served:
    """A door that is open, and how often it attended."""

    def __init__(self, host: str | None, attends: bool = False) -> None:
        self.attended = threading.Event()
        self.door = Door(TOKEN, self.attended.set if attends else None)
        self.address = self.door.open(host)
        self.door.start(HELLO)

    def connect(self) -> tuple[socket.socket, bytes]:
        """A link of our own, and the owner's nonce."""
        link = knock._connect(OWNER, self.address)
        greeting = knock._receive(link, OWNER)
        assert greeting.startswith(GREETING)
        return link, greeting.removeprefix(GREETING)


@pytest.fixture
def served(host: str | None) -> Iterator[Served]:
    made = Served(host)
    yield made
    made.door.close()


def is_sent_away(link: socket.socket) -> bool:
    with link:
        try:
            return link.recv(1) == b""
        except ConnectionResetError:
            return True


def framed(packet: bytes) -> bytes:
    return LENGTH.pack(len(packet)) + packet


def honest(owner_nonce: bytes, name: bytes = b"guest@1") -> bytes:
    nonce = b"n" * NONCE_BYTES
    return nonce + proof(TOKEN, "reader", owner_nonce, nonce, name, GREETING) + name


def test_who_holds_the_token_is_told_the_hello_and_sees_the_door_close(served: Served) -> None:
    link, hello = knock.knock(OWNER, served.address, TOKEN, READER)
    assert hello == HELLO
    assert is_open(link)
    closing = threading.Thread(target=served.door.close)
    closing.start()
    while is_open(link):
        pass
    assert closing.is_alive()  # it waits for us to let go
    link.close()
    closing.join()


def test_who_holds_another_token_is_turned_away(served: Served) -> None:
    with pytest.raises(PeerLost, match="turned away"):
        knock.knock(OWNER, served.address, b"x" * 32, READER)


@pytest.mark.parametrize(
    "data",
    [
        framed(b"x"),
        framed(b"x" * (NONCE_BYTES + PROOF_BYTES)),
        framed(b"n" * NONCE_BYTES + b"\0" * PROOF_BYTES + b"guest@1"),
        LENGTH.pack(0),
        LENGTH.pack(1 << 31),
        b"x" * 100_000,
    ],
)
def test_a_guest_that_says_anything_but_the_proof_is_sent_away(served: Served, data: bytes) -> None:
    link, _ = served.connect()
    with suppress(BrokenPipeError, ConnectionResetError):  # sent away before it has said all
        link.sendall(data)
    assert is_sent_away(link)


def test_a_proof_that_comes_in_pieces_is_a_proof(served: Served) -> None:
    link, nonce = served.connect()
    for byte in framed(honest(nonce)):
        link.sendall(bytes([byte]))
    assert knock._receive(link, OWNER)[PROOF_BYTES:] == HELLO
    link.close()


def test_a_proof_opens_the_door_once_and_covers_the_name(served: Served) -> None:
    link, nonce = served.connect()
    link.sendall(framed(honest(nonce)))
    assert knock._receive(link, OWNER)
    again, _ = served.connect()
    again.sendall(framed(honest(nonce)))
    assert is_sent_away(again)
    other, nonce = served.connect()
    other.sendall(framed(honest(nonce) + b"0"))
    assert is_sent_away(other)
    link.close()


def test_a_silent_guest_is_sent_away_and_holds_up_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "HANDSHAKE_S", 0.2)
    silent, _ = served.connect()
    monkeypatch.undo()
    knock.knock(OWNER, served.address, TOKEN, READER)[0].close()
    assert is_sent_away(silent)


def test_one_guest_too_many_is_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MAX_GUESTS", 1)
    first, _ = served.connect()
    assert is_sent_away(knock._connect(OWNER, served.address))
    first.close()


def test_another_user_of_this_machine_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(None)
    monkeypatch.setattr(guests, "is_same_user", lambda link: False)
    with pytest.raises(PeerLost, match=r"turned away|broke off"):
        knock.knock(OWNER, served.address, TOKEN, READER)
    monkeypatch.setattr(knock, "is_same_user", lambda link: False)
    with pytest.raises(PeerLost, match="belongs to another user"):
        knock.knock(OWNER, served.address, TOKEN, READER)
    served.door.close()


def test_an_owner_attends_while_somebody_reads(host: str | None) -> None:
    served = Served(host, attends=True)
    link, _ = knock.knock(OWNER, served.address, TOKEN, READER)
    served.attended.clear()
    link.send(READING)
    assert served.attended.wait(10)
    link.send(DONE)
    assert is_open(link)
    link.setblocking(True)
    link.send(DONE)  # of a read that never began
    assert is_sent_away(link)
    served.door.close()


def test_a_guest_that_speaks_where_nobody_attends_is_sent_away(served: Served) -> None:
    link, _ = knock.knock(OWNER, served.address, TOKEN, READER)
    link.setblocking(True)
    link.send(READING)
    assert is_sent_away(link)


def test_an_owner_without_the_token_is_not_believed() -> None:
    impostor = Door(b"x" * 32)
    address = impostor.open()
    impostor.start(HELLO)
    with pytest.raises(PeerLost, match="turned away"):
        knock.knock(OWNER, address, TOKEN, READER)
    impostor.close()


@pytest.mark.parametrize("address", ["", "unix:nobody-is-here", "tcp:127.0.0.1:1", "tcp:127.0.0.1:x", "udp:1:1"])
def test_an_address_where_nobody_is_is_a_lost_peer(address: str) -> None:
    with pytest.raises(PeerLost):
        knock.knock(OWNER, address, TOKEN, READER)


def test_links_of_our_own_are_watched(served: Served) -> None:
    ended = threading.Event()
    other = Served(None)
    link, _ = knock.knock(OWNER, other.address, TOKEN, READER)
    served.door.watch(link, lambda: (ended.set(), link.close()))
    other.door.close()
    assert ended.wait(10)


@contextmanager
def holding(door: Door) -> Iterator[threading.Event]:
    """The door's thread waits until this is set: what happens meanwhile it sees in one look."""
    entered, gate = threading.Event(), threading.Event()
    ours, theirs = socket.socketpair()

    def hold() -> None:
        entered.set()
        assert gate.wait(10)

    with ours, theirs:
        door.watch(ours, hold)
        theirs.shutdown(socket.SHUT_WR)
        assert entered.wait(10)
        try:
            yield gate
        finally:
            gate.set()


def test_a_link_that_is_forgotten_as_it_ends_does_not_end_the_door(served: Served) -> None:
    ended: Queue[int] = Queue()
    pairs = [socket.socketpair() for _ in range(2)]

    def end(number: int) -> None:
        served.door.forget(pairs[1 - number][0])
        ended.put(number)

    with holding(served.door) as gate:
        for number, (ours, theirs) in enumerate(pairs):
            served.door.watch(ours, partial(end, number))
            theirs.close()
        gate.set()
        ended.get(timeout=10)
    knock.knock(OWNER, served.address, TOKEN, READER)[0].close()
    assert ended.empty(), "nobody is told of the end of what is forgotten"
    for ours, _ in pairs:
        ours.close()


def test_a_door_that_closes_as_a_stranger_speaks_still_waits_for_its_guests(served: Served) -> None:
    guest, _ = knock.knock(OWNER, served.address, TOKEN, READER)
    stranger, _ = served.connect()
    closing = threading.Thread(target=served.door.close)
    with holding(served.door) as gate:
        closing.start()
        until_s = time.monotonic() + 10
        while served.door._bell.fileno() >= 0 and time.monotonic() < until_s:
            time.sleep(0.001)
        stranger.sendall(b"?")
        gate.set()
        assert is_sent_away(stranger)
    closing.join(0.2)
    assert closing.is_alive(), "a guest has not let go yet"
    guest.close()
    closing.join(10)
    assert not closing.is_alive()


def test_a_door_that_never_opened_or_is_closed_keeps_nothing() -> None:
    unopened = Door(TOKEN)
    unopened.close()
    unopened.close()
    closed = Door(TOKEN)
    closed.open()
    closed.start(HELLO)
    closed.close()
    closed.close()
