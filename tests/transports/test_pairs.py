"""What two-sided transports do beside what all do: leases, bounds, stalls and late answers (over gloo)."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.errors import ConfigError, LeaseExpired, PeerLost
from core.ids import AttemptId, NodeId
from kv_transfer import asking, control, nccl, pairs
from kv_transfer.asking import Pace
from kv_transfer.control import Control
from kv_transfer.faults import NoFaults
from kv_transfer.frames import Kind
from kv_transfer.gloo import GlooTransport
from kv_transfer.lending import Lending
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
from kv_transfer.pairs import PROGRESS_S, GlooPairs
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding
from tests.transports.conftest import LENDER, READER, handle_of, target
from tests.transports.device_lenders import DeviceLender, StandInSlab
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, LocalLender, content, gloo_lender
from tests.transports.pair_ends import gloo, impostor, reader, served

BLOCK = SMALL.layout.bytes_per_block
ATTEMPT = AttemptId("r#1")


@pytest.fixture
def lender() -> Iterator[LocalLender]:
    made = gloo_lender(LENDER, LAYOUT, SMALL)
    yield made
    made.close()


def test_a_lease_is_lent_to_one_reader_and_not_to_another(lender: LocalLender) -> None:
    lender.lend("r#1", "somebody@1")
    digest = lender.write(5, 7, seed=5)
    with reader() as (transport, slab):
        transport.bind(lender.binding())
        with pytest.raises(LeaseExpired, match="not lent to reader@1"):
            transport.fetch(handle_of((5,), (7,), (digest,)), target((0,)))
        assert not any(slab.block(0))
    assert served(lender) == {"lease": 1}


def test_revoking_waits_for_the_piece_that_is_read_and_ends_the_fetch_before_the_next(
    lender: LocalLender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_PIECE_BYTES", BLOCK)
    lender.lend("r#1", READER)
    blocks = tuple(range(30))
    digests = tuple(lender.write(block, 7, seed=block) for block in blocks)
    revoking = threading.Thread(target=lender.revoke, args=("r#1", READER))
    was_over: list[bool] = []

    def begin() -> None:
        revoking.start()
        revoking.join(0.05)
        was_over.append(not revoking.is_alive())

    lender._next.append(begin)
    with reader() as (transport, _):
        transport.bind(lender.binding())
        with pytest.raises(LeaseExpired, match="lent to reader@1"):
            transport.fetch(handle_of(blocks, (7,) * 30, digests), target(blocks))
    revoking.join(10)
    assert was_over == [False]


def test_a_lease_that_was_revoked_cannot_be_read_and_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.lending.MAX_LENT", 2)
    lending = Lending()
    for attempt in ("a#1", "b#1", "c#1"):
        lending.lend(AttemptId(attempt), READER)
    assert [lending.is_lent(AttemptId(attempt), READER) for attempt in ("a#1", "b#1", "c#1")] == [False, True, True]
    lending.revoke(AttemptId("b#1"), READER)
    with lending.reading(AttemptId("b#1"), READER) as is_lent:
        assert not is_lent
    lending.revoke(AttemptId("never lent"), READER)


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_owner_that_stops_in_the_middle_is_lost_at_the_progress_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PROGRESS_S", 0.2)
    done = threading.Event()
    address: list[Binding] = []

    def act(guest: Control) -> None:
        control.welcome(guest, address[0], TOKEN)
        guest.receive(5)
        with gloo() as kind:
            pair = pairs.Pair(kind, guest, pairs.OWNER, 1, torch.empty(1, dtype=torch.uint8))
        done.wait(10)
        pair.close()

    with reader() as (transport, slab), impostor(act) as binding:
        address.append(binding)
        transport.bind(binding)
        with pytest.raises(PeerLost, match=r"lender@1 is gone: it has not answered for"):
            transport.fetch(handle_of((5,), (7,), (b"d" * 16,)), target((0,)))
        assert not any(slab.block(0))
        done.set()


def test_bytes_that_are_announced_and_do_not_come_abort_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.pairs.Pair.wait.__defaults__", (0.3,))
    done = threading.Event()
    address: list[Binding] = []

    def act(guest: Control) -> None:
        control.welcome(guest, address[0], TOKEN)
        guest.receive(5)
        with gloo() as kind:
            pair = pairs.Pair(kind, guest, pairs.OWNER, 1, torch.empty(1, dtype=torch.uint8))
        guest.receive(5)
        lent = np.array((7,), "<u8").tobytes()
        guest.send(5, Kind.PIECE, 2, 0, BLOCK, lent, lent)
        done.wait(10)
        pair.close()

    with reader() as (transport, slab), impostor(act) as binding:
        address.append(binding)
        transport.bind(binding)
        with pytest.raises(PeerLost, match=r"lender@1 is gone: gloo: .*Timed out"):
            transport.fetch(handle_of((5,), (7,), (b"d" * 16,)), target((0,)))
        assert not any(slab.block(0))
        done.set()


@pytest.mark.parametrize("answer", [(3, 0, BLOCK, 7, 7), (2, 0, BLOCK - 1, 7, 7), (2, 0, BLOCK, None, 7)])
def test_an_answer_to_something_else_is_not_believed(answer: tuple[int, int, int, int | None, int]) -> None:
    address: list[Binding] = []
    number, start, end, before, after = answer

    def act(guest: Control) -> None:
        control.welcome(guest, address[0], TOKEN)
        guest.receive(5)
        with gloo() as kind:
            pair = pairs.Pair(kind, guest, pairs.OWNER, 1, torch.empty(1, dtype=torch.uint8))
        told = [b"" if said is None else np.array((said,), "<u8").tobytes() for said in (before, after)]
        guest.send(5, Kind.PIECE, number, start, end, *told)
        guest.receive(5)
        guest.receive(5)
        pair.close()

    with reader() as (transport, _), impostor(act) as binding:
        address.append(binding)
        transport.bind(binding)
        with pytest.raises(PeerLost, match="lender@1 is gone"):
            transport.fetch(handle_of((5,), (7,), (b"d" * 16,)), target((0,)))
        assert sum(transport.refusals.counts().values()) == 1


def test_what_the_owner_says_of_its_header_is_compared_here_as_well() -> None:
    address: list[Binding] = []

    def act(guest: Control) -> None:
        control.welcome(guest, address[0], TOKEN)
        guest.receive(5)
        with gloo() as kind:
            pair = pairs.Pair(kind, guest, pairs.OWNER, 1, torch.empty(1, dtype=torch.uint8))
        before, after = (np.array((said,), "<u8").tobytes() for said in (7, 8))
        guest.send(5, Kind.PIECE, 2, 0, BLOCK, before, after)
        guest.receive(5)
        guest.receive(5)
        pair.close()

    with reader() as (transport, _), impostor(act) as binding:
        address.append(binding)
        transport.bind(binding)
        with pytest.raises(LeaseExpired, match=r"reused during the copy \(generation 8, lent as 7\)"):
            transport.fetch(handle_of((5,), (7,), (b"d" * 16,)), target((0,)))


def test_pairs_are_bounded_at_both_ends_and_made_again_when_needed() -> None:
    lenders = [gloo_lender(NodeId(f"lender@{i}"), LAYOUT, SMALL) for i in range(3)]
    digests = [lender.write(5, 7, seed=5) for lender in lenders]
    with reader(max_pairs=2) as (transport, slab):
        for lender in lenders:
            lender.lend("r#1", READER)
            transport.bind(lender.binding())
        assert transport.num_pairs() == 0, "a pair is made by the first fetch"
        for turn in range(9):
            owner = turn % 3
            handle = replace(handle_of((5,), (7,), (digests[owner],)), owner=NodeId(f"lender@{owner}"))
            assert transport.fetch(handle, target((turn,))) == BLOCK
            assert transport.num_pairs() <= 2
        assert all(bytes(slab.block(turn)) == content(5, BLOCK) for turn in range(9))
    for lender in lenders:
        lender.close()


def test_an_owner_that_gave_a_pair_to_another_reader_makes_it_again(lender: LocalLender) -> None:
    slab = Slab.anonymous(SMALL, "lender")
    options = PairOptions(NoFaults(), max_pairs=1)
    narrow = LocalLender(GlooTransport(NodeId("narrow@1"), LAYOUT, HostBlocks(slab), "127.0.0.1", TOKEN, options), slab)
    digest = narrow.write(5, 7, seed=5)
    handle = replace(handle_of((5,), (7,), (digest,)), owner=NodeId("narrow@1"))
    with reader(NodeId("a@1")) as (one, _), reader(NodeId("b@1")) as (other, _):
        for transport, name in ((one, "a@1"), (other, "b@1")):
            narrow.lend("r#1", name)
            transport.bind(narrow.binding())
        for transport in (one, other, one, other):
            assert transport.fetch(handle, target((0,))) == BLOCK
    narrow.close()
    assert served(narrow) == {"pair": 2 * 1}  # a refusal for each time the pair was with the other one


def test_a_link_is_measured_with_bytes_that_mean_nothing(lender: LocalLender) -> None:
    lender.write(5, 7, seed=5)
    with reader() as (transport, slab):
        transport.bind(lender.binding())
        assert transport.measure(LENDER) > 0
        assert not any(any(slab.block(block)) for block in range(32))


def test_pieces_shrink_on_a_slow_link_and_grow_on_a_fast_one() -> None:
    pace = Pace()
    for _ in range(20):
        pace.took(pace.piece_bytes, 0.001)
    assert pace.piece_bytes == 16 << 20
    pace.took(pace.piece_bytes, PROGRESS_S / 2)
    assert pace.piece_bytes == 4 << 20
    for _ in range(20):
        pace.took(pace.piece_bytes, PROGRESS_S / 2)
    assert pace.piece_bytes == asking.MIN_PIECE_BYTES
    for _ in range(3):
        pace.took(1024, 0.001)
    assert pace.piece_bytes == asking.MIN_PIECE_BYTES, "a small last piece says nothing of larger ones"
    pace.took(pace.piece_bytes, 0.001)
    pace.stalled()
    assert pace.piece_bytes == asking.MIN_PIECE_BYTES


# ── nccl, with gloo in its place ─────────────────────────────────────────────────────────────────────────────────────


def test_nccl_is_refused_where_there_is_none_with_the_reason() -> None:
    if not nccl.why_not():
        return
    slab = StandInSlab(SMALL)
    with pytest.raises(ConfigError, match=r"nccl cannot work here: (this build of torch has no NCCL|no CUDA device)"):
        nccl.NcclTransport(READER, LAYOUT, slab, "127.0.0.1", TOKEN)
    slab.close()


def test_blocks_that_are_tensors_travel_by_the_same_logic() -> None:
    sides = []
    for node in (LENDER, READER):
        slab = StandInSlab(SMALL)
        options, kind = PairOptions(NoFaults()), GlooPairs("127.0.0.1")
        sides.append((nccl.NcclTransport(node, LAYOUT, slab, "127.0.0.1", TOKEN, options, kind), slab))
    (owner, theirs), (transport, ours) = sides
    lender = DeviceLender(owner, theirs)
    lender.lend("r#1", READER)
    digests = tuple(lender.write(block, 2**63 + block, seed=block) for block in (9, 3, 4))
    transport.bind(owner.binding())
    assert transport.binding().transport == transport.name == "nccl"
    handle = handle_of((9, 3, 4), tuple(2**63 + block for block in (9, 3, 4)), digests)
    assert transport.fetch(handle, target((0, 1, 30), generation=2**64 - 1)) == 3 * BLOCK
    assert [bytes(ours.block(block)) == content(seed, BLOCK) for block, seed in ((0, 9), (1, 3), (30, 4))] == [True] * 3
    assert ours.view.generations[30] == 2**64 - 1
    lender.write(3, 2**63 + 3, seed=1)
    with pytest.raises(Exception, match="the digest of block 3"):
        transport.fetch(handle, target((0, 1, 30)))
    for side, slab in sides:
        side.close()
        slab.close()


def test_a_pair_that_is_in_use_is_not_given_up_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "PROGRESS_S", 0.02)

    class Holder:
        def __init__(self, is_idle: bool) -> None:
            self.is_idle = is_idle

        def give_up_pair(self) -> bool:
            return self.is_idle

    busy, idle, last = Holder(is_idle=False), Holder(is_idle=True), Holder(is_idle=False)
    book = pairs.PairBook(max_pairs=2)
    book.admit(idle)
    book.admit(busy)
    book.admit(last)
    assert book.num_open() == 2
    with pytest.raises(pairs.PairBroken, match="all 2 pairs of this node are in use"):
        book.admit(idle)
    book.forget(busy)
    book.forget(busy)
    book.admit(idle)
    assert book.num_open() == 2
