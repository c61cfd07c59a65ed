"""Who gets a slab over shared memory, and what they get: the handshake, from both sides."""

import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from core.errors import ConfigError, LayoutMismatch, PeerLost
from core.ids import NodeId
from core.kv import SlabShape
from kv_transfer import guests, shm
from kv_transfer.faults import NoFaults
from kv_transfer.handshake import GREETING, NONCE_BYTES, PROOF_BYTES, proof
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding
from tests.transports.conftest import READER, target
from tests.transports.conftest import handle_of as lent
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, LocalLender, shm_lender

LENDER = NodeId("lender@1")


@pytest.fixture
def lender() -> Iterator[LocalLender]:
    made = shm_lender(LENDER, LAYOUT, SMALL)
    yield made
    made.close()


@contextmanager
def reader(token: bytes = TOKEN) -> Iterator[ShmTransport]:
    slab = Slab.anonymous(SMALL, "reader")
    transport = ShmTransport(READER, LAYOUT, slab, token, NoFaults())
    try:
        yield transport
    finally:
        transport.close()
        slab.close()


def knock(lender: LocalLender) -> tuple[socket.socket, bytes]:
    """A link of our own to the lender's door, and its nonce."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(10)
    link.connect(f"\0{lender.binding().address}")
    greeting = link.recv(4096)
    assert greeting.startswith(GREETING)
    return link, greeting.removeprefix(GREETING)


def honest(owner_nonce: bytes, token: bytes = TOKEN, name: bytes = b"guest@1") -> bytes:
    nonce = b"n" * NONCE_BYTES
    return nonce + proof(token, "reader", owner_nonce, nonce, name) + name


def is_sent_away(link: socket.socket) -> bool:
    with link:
        try:
            return link.recv(4096) == b""
        except ConnectionResetError:
            return True


def test_a_reader_with_another_token_is_turned_away(lender: LocalLender) -> None:
    with reader(b"another token, just as long here") as transport, pytest.raises(PeerLost, match="turned away"):
        transport.bind(lender.binding())


def test_a_token_that_can_be_guessed_is_a_configuration_error() -> None:
    with Slab.anonymous(SMALL, "x") as slab, pytest.raises(ConfigError, match="cluster token: 5 bytes"):
        ShmTransport(LENDER, LAYOUT, slab, b"short", NoFaults())


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"x" * (NONCE_BYTES + PROOF_BYTES),
        b"x" * 4000,
        b"x" * 100_000,
        b"n" * NONCE_BYTES + b"\0" * PROOF_BYTES + b"guest@1",
    ],
)
def test_a_guest_that_says_anything_but_the_proof_is_sent_away(lender: LocalLender, packet: bytes) -> None:
    link, _ = knock(lender)
    link.send(packet)
    assert is_sent_away(link)


def test_a_proof_does_not_open_the_door_twice(lender: LocalLender) -> None:
    link, nonce = knock(lender)
    packet = honest(nonce)
    link.send(packet)
    assert link.recv(4096)
    again, other_nonce = knock(lender)
    assert nonce != other_nonce
    again.send(packet)
    assert is_sent_away(again)
    link.close()


def test_a_proof_covers_the_name_of_the_reader(lender: LocalLender) -> None:
    link, nonce = knock(lender)
    link.send(honest(nonce) + b"0")
    assert is_sent_away(link)


def test_a_guest_that_speaks_after_the_handshake_is_sent_away(lender: LocalLender) -> None:
    link, nonce = knock(lender)
    link.send(honest(nonce))
    link.recv(4096)
    link.send(b"more")
    assert is_sent_away(link)


def test_a_silent_guest_is_sent_away_and_holds_up_nobody(lender: LocalLender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "HANDSHAKE_S", 0.2)
    silent, _ = knock(lender)
    monkeypatch.undo()
    with reader() as transport:
        transport.bind(lender.binding())
    assert is_sent_away(silent)


def test_one_guest_too_many_is_sent_away(lender: LocalLender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MAX_GUESTS", 2)
    first, second = knock(lender)[0], knock(lender)[0]
    third = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    third.connect(f"\0{lender.binding().address}")
    assert is_sent_away(third)
    first.close()
    second.close()


def test_another_user_is_sent_away_on_both_sides(lender: LocalLender, monkeypatch: pytest.MonkeyPatch) -> None:
    with reader() as transport:
        monkeypatch.setattr(shm, "is_same_user", lambda link: False)
        with pytest.raises(PeerLost, match="belongs to another user"):
            transport.bind(lender.binding())
        monkeypatch.undo()
        monkeypatch.setattr(guests, "is_same_user", lambda link: False)
        with pytest.raises(PeerLost, match="turned away"):
            transport.bind(lender.binding())


def test_the_descriptor_that_a_reader_gets_cannot_be_written_by_any_way(lender: LocalLender) -> None:
    link, nonce = knock(lender)
    link.send(honest(nonce))
    _, fds, _, _ = socket.recv_fds(link, 4096, 4)
    assert len(fds) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fds[0], b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(fds[0], SMALL.total_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(fds[0], 0)
    again = os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)
    with pytest.raises(PermissionError):  # by the seal, not by the mode
        mmap.mmap(again, SMALL.total_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)
    os.close(fds[0])
    link.close()


# ── what a reader believes ───────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def impostor(act: Callable[[socket.socket], None]) -> Iterator[Binding]:
    """Somebody at the lender's address who does `act` with the one guest that comes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")  # the kernel picks an abstract name
    listener.listen(1)

    def serve() -> None:
        link, _ = listener.accept()
        with link:
            link.settimeout(10)
            act(link)

    thread = threading.Thread(target=serve)
    thread.start()
    yield Binding(LENDER, LAYOUT, SMALL, "shm", listener.getsockname()[1:].decode())
    thread.join()
    listener.close()


def hand_over(link: socket.socket, told: Binding, token: bytes, fds: list[int]) -> None:
    """The owner's part of the handshake, with whatever is given."""
    owner_nonce = b"o" * NONCE_BYTES
    link.send(GREETING + owner_nonce)
    packet = link.recv(4096)
    assert TOKEN not in packet
    hello = told.pack()
    socket.send_fds(link, [proof(token, "owner", owner_nonce, packet[:NONCE_BYTES], hello) + hello], fds)
    link.recv(4096)


def unsealed() -> int:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, SMALL.total_bytes)
    return fd


@pytest.mark.parametrize(
    ("token", "told", "num_fds", "error", "words"),
    [
        (b"x" * 32, {}, 1, PeerLost, "does not hold the cluster token"),
        (TOKEN, {}, 0, PeerLost, "does not hold the cluster token"),
        (TOKEN, {}, 2, PeerLost, "does not hold the cluster token"),
        (TOKEN, {"node": NodeId("other@2")}, 1, PeerLost, "now belongs to other@2"),
        (TOKEN, {"shape": replace(SMALL, num_blocks=31)}, 1, LayoutMismatch, "was announced as"),
        (TOKEN, {}, 1, LayoutMismatch, "seals"),
    ],
)
def test_an_owner_that_is_not_what_was_announced_is_not_believed(
    token: bytes, told: dict[str, object], num_fds: int, error: type[Exception], words: str
) -> None:
    fds = [unsealed() for _ in range(num_fds)]
    address: list[Binding] = []

    def act(link: socket.socket) -> None:
        hand_over(link, replace(address[0], **told), token, fds)  # type: ignore[arg-type]

    with reader() as transport, impostor(act) as binding:
        address.append(binding)
        with pytest.raises(error, match=words):
            transport.bind(binding)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("greeting", [b"hello", GREETING, GREETING + b"x" * (NONCE_BYTES + 1), b"x" * 4096])
def test_an_owner_that_greets_otherwise_is_not_believed(greeting: bytes) -> None:
    with (
        reader() as transport,
        impostor(lambda link: link.sendall(greeting)) as binding,
        pytest.raises(PeerLost, match="does not speak this protocol"),
    ):
        transport.bind(binding)


def waits(link: socket.socket) -> None:
    link.recv(1)


def test_an_owner_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "HANDSHAKE_S", 0.2)
    with (
        reader() as transport,
        impostor(waits) as binding,
        pytest.raises(PeerLost, match="the handshake broke off"),
    ):
        transport.bind(binding)


def test_what_an_owner_says_later_ends_its_link() -> None:
    slab = Slab.anonymous(SMALL, "impostor")
    address: list[Binding] = []
    said = threading.Event()

    def act(link: socket.socket) -> None:
        assert slab.fd is not None
        owner_nonce = b"o" * NONCE_BYTES
        link.send(GREETING + owner_nonce)
        packet = link.recv(4096)
        hello = address[0].pack()
        answer = proof(TOKEN, "owner", owner_nonce, packet[:NONCE_BYTES], hello) + hello
        socket.send_fds(link, [answer], [slab.fd])
        link.send(b"more")
        said.set()
        with contextlib.suppress(ConnectionResetError):
            link.recv(1)

    with impostor(act) as binding, reader() as transport:
        address.append(binding)
        transport.bind(binding)
        handle = lent((), (), ())
        assert said.wait(10)
        with pytest.raises(PeerLost, match="is gone"):
            transport.fetch(handle, target(()))
    slab.close()


def test_a_door_that_cannot_open_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "x" * 200)
    with Slab.anonymous(SMALL, "x") as slab, pytest.raises(OSError, match="path too long"):
        ShmTransport(LENDER, LAYOUT, slab, TOKEN, NoFaults())


def test_memory_without_a_descriptor_cannot_be_served() -> None:
    with Slab.in_process(SlabShape(SMALL.layout, 1)) as slab, pytest.raises(ValueError, match=r"Slab\.anonymous"):
        ShmTransport(LENDER, LAYOUT, slab, TOKEN, NoFaults())
