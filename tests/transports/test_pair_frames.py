"""What a two-sided transport does not believe: frames, requests and strangers (over gloo)."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import xxhash

from core.errors import ConfigError, PeerLost
from core.ids import AttemptId, NodeId
from kv_transfer import control, pair_server
from kv_transfer.control import Control, connect
from kv_transfer.frames import HEADER, MAGIC, MAX_BODY_BYTES, VERSION, BadFrame, Kind, encode, read_body, read_header
from kv_transfer.handshake import NONCE_BYTES, PAIR_GREETING, proof
from tests.transports.conftest import LENDER, READER, handle_of, target
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, LocalLender, gloo_lender
from tests.transports.pair_ends import impostor, opened, reader, served

BLOCK = SMALL.layout.bytes_per_block
ATTEMPT = AttemptId("r#1")


@pytest.fixture
def lender() -> Iterator[LocalLender]:
    made = gloo_lender(LENDER, LAYOUT, SMALL)
    yield made
    made.close()


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = encode(Kind.WANT, 3, 0, 16)


def test_a_frame_survives_its_way() -> None:
    header = read_header(GOOD[: HEADER.size], MAX_BODY_BYTES)
    assert (header.kind, read_body(header, GOOD[HEADER.size :])) == (Kind.WANT, (3, 0, 16))


def framed(body: object, kind: int = Kind.WANT) -> bytes:
    """A frame whose digest is right, whatever its body says."""
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    return HEADER.pack(MAGIC, VERSION, kind, len(packed), xxhash.xxh3_64_intdigest(packed)) + packed


def at(place: int, value: int) -> bytes:
    return GOOD[:place] + bytes([value]) + GOOD[place + 1 :]


BAD_FRAMES = [
    (at(0, ord("X")), "magic"),
    (b"GET / HTTP/1.1\r\nHost: kv\r\n\r\n", "magic"),
    (at(4, 2), "version"),
    (at(5, 0), "kind"),
    (at(5, 99), "kind"),
    (HEADER.pack(MAGIC, VERSION, Kind.WANT, MAX_BODY_BYTES + 1, 0), "length"),
    (HEADER.pack(MAGIC, VERSION, Kind.WANT, 2**32 - 1, 0), "length"),
    (at(12, GOOD[12] ^ 1), "digest"),
    (at(len(GOOD) - 1, GOOD[-1] ^ 1), "digest"),
    (framed(b"\xc1"), "body"),
    (framed(b""), "body"),
    (framed({"a": 1}), "body"),
    (framed((3, 0)), "body"),
    (framed((3, 0, 16, 1)), "body"),
    (framed((3, 0, "16")), "body"),
    (framed((True, 0, 16)), "body"),
    (encode(Kind.PIECE, 1, 0, 16, b"", b""), "order"),
    (encode(Kind.GREETING, PAIR_GREETING, b"n" * NONCE_BYTES), "order"),
    (encode(Kind.WANT, 0, 0, 16), "order"),
    (encode(Kind.WANT, 2, 0, 16), "order"),
    (encode(Kind.ASK, 2, "lender@1", "r#1", b"", b""), "order"),
    (encode(Kind.PROBE, 7, 16), "order"),
]


@pytest.mark.parametrize(("sent", "reason"), BAD_FRAMES)
def test_a_bad_frame_ends_its_connection_with_a_reason_and_harms_no_other(
    lender: LocalLender, sent: bytes, reason: str
) -> None:
    guest = connect(lender.binding(), TOKEN, NodeId("guest@1"))
    guest._link.sendall(sent)
    refused = guest.receive(5)
    assert (refused.kind, refused.fields[1]) == (Kind.REFUSED, "frame")
    with pytest.raises((ConnectionError, BadFrame)):
        guest.receive(5)
    guest.close()
    assert served(lender) == {reason: 1}
    lender.lend("r#1", READER)
    digest = lender.write(5, 7, seed=5)
    with reader() as (transport, _):
        transport.bind(lender.binding())
        assert transport.fetch(handle_of((5,), (7,), (digest,)), target((0,))) == BLOCK


def ask(number: int, block_ids: tuple[int, ...], generations: tuple[int, ...], owner: str = LENDER) -> bytes:
    ids, lent = np.array(block_ids, "<u4").tobytes(), np.array(generations, "<u8").tobytes()
    return encode(Kind.ASK, number, owner, "r#1", ids, lent)


@pytest.mark.parametrize(
    ("asked", "wanted", "reason"),
    [
        (ask(1, (5,), (7,), owner="lender@0"), (0, BLOCK), "incarnation"),
        (ask(1, (32,), (7,)), (0, BLOCK), "range"),
        (ask(1, (5, 5), (7, 7)), (0, BLOCK), "range"),
        (ask(1, (5, 6), (7,)), (0, BLOCK), "range"),
        (ask(1, (5,), (7,)), (0, BLOCK + 1), "range"),
        (ask(1, (5,), (7,)), (-1, BLOCK), "range"),
        (ask(1, (5,), (7,)), (16, 16), "range"),
        (ask(1, (5, 6), (7, 7)), (16, BLOCK + 16), "range"),
        (ask(1, (5,), (8,)), (0, BLOCK), "generation"),
        (encode(Kind.ASK, 1, LENDER, "r#2", b"\5\0\0\0", b"\7" + b"\0" * 7), (0, BLOCK), "lease"),
    ],
)
def test_what_is_not_lent_like_this_is_refused_with_a_reason_and_counted(
    lender: LocalLender, asked: bytes, wanted: tuple[int, int], reason: str
) -> None:
    lender.lend("r#1", "guest@1")
    lender.write(5, 7, seed=5)
    lender.write(6, 7, seed=6)
    guest = connect(lender.binding(), TOKEN, NodeId("guest@1"))
    pair = opened(guest)
    guest._link.sendall(asked)
    guest.send(5, Kind.WANT, 2, *wanted)
    refused = guest.receive(5)
    assert (refused.kind, refused.fields[1]) == (Kind.REFUSED, reason)
    pair.close()
    guest.close()
    assert served(lender) == {reason: 1}


# ── strangers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_with_another_token_is_turned_away_and_counted(lender: LocalLender) -> None:
    with (
        reader(token=b"another token, just as long here") as (transport, _),
        pytest.raises(PeerLost, match="turned us away"),
    ):
        transport.bind(lender.binding())
    assert served(lender) == {"token": 1}


def test_a_token_that_can_be_guessed_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cluster token: 5 bytes"), reader(token=b"short"):
        pass


def test_a_reader_that_means_an_incarnation_before_us_is_told_who_is_here_now(lender: LocalLender) -> None:
    before = replace(lender.binding(), node=NodeId("lender@0"))
    with reader() as (transport, _), pytest.raises(PeerLost, match=r"lender@0 is gone: .* now belongs to lender@1"):
        transport.bind(before)
    lender.close()
    assert served(lender) == {"incarnation": 1}


def test_an_owner_that_does_not_hold_the_token_is_not_believed() -> None:
    def act(guest: Control) -> None:
        guest.send(5, Kind.GREETING, PAIR_GREETING, b"o" * NONCE_BYTES)
        nonce, given, node, wanted = guest.receive(5).fields
        assert TOKEN not in encode(Kind.PROOF, nonce, given, node, wanted)
        echoed = proof(b"x" * 32, "owner", b"o" * NONCE_BYTES, nonce, b"", PAIR_GREETING)  # type: ignore[arg-type]
        guest.send(5, Kind.WELCOME, echoed, b"")

    with reader() as (transport, _), impostor(act) as binding, pytest.raises(PeerLost, match="does not hold the"):
        transport.bind(binding)


@pytest.mark.parametrize("greeting", [b"penstock-shm-1\n", b""])
def test_an_owner_that_greets_otherwise_is_not_believed(greeting: bytes) -> None:
    def act(guest: Control) -> None:
        guest.send(5, Kind.GREETING, greeting, b"o" * NONCE_BYTES)

    with reader() as (transport, _), impostor(act) as binding, pytest.raises(PeerLost, match="does not speak"):
        transport.bind(binding)


def test_an_owner_or_reader_that_says_nothing_is_given_up(lender: LocalLender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HANDSHAKE_S", 0.2)
    done = threading.Event()
    with reader() as (transport, _), impostor(lambda guest: assert_true(done.wait(10))) as binding:
        with pytest.raises(PeerLost, match="turned us away, or is closing: timed out"):
            transport.bind(binding)
        done.set()
    host, _, port = lender.binding().address.rpartition(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.settimeout(10)
        while silent.recv(4096):  # its greeting, then the end
            pass


def assert_true(value: bool) -> None:
    assert value


def test_one_reader_too_many_is_sent_away(lender: LocalLender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_server, "MAX_READERS", 1)
    first = connect(lender.binding(), TOKEN, NodeId("guest@1"))
    with pytest.raises(PeerLost):
        connect(lender.binding(), TOKEN, NodeId("guest@2"))
    first.close()
