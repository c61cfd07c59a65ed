"""What the host path between two devices does beside what every transport does: parts of blocks, devices that fail."""

from collections.abc import Iterator

import pytest
import torch

from core.errors import PeerLost
from core.ids import AttemptId
from kv_transfer.faults import Faults, NoFaults
from kv_transfer.staging import StagedBlocks
from tests.transports.conftest import LENDER, READER, Hook, handle_of, target
from tests.transports.device_lenders import StandInSlab, staged_lender, staged_reader
from tests.transports.lenders import LAYOUT, SMALL, LocalLender, content
from tests.transports.stand_in_device import StandInDevice

BLOCK = SMALL.layout.bytes_per_block


@pytest.fixture
def lender() -> Iterator[LocalLender]:
    made = staged_lender(LENDER, LAYOUT, SMALL)
    made.transport.lend(AttemptId("r#1"), READER)
    yield made
    stand_in(made).fails = ""
    made.close()


def stand_in(lender: LocalLender) -> StandInDevice:
    slab: object = lender.slab
    assert isinstance(slab, StandInSlab)
    return slab.stand_in


def test_whole_blocks_and_parts_of_one_are_packed_and_put_back() -> None:
    with StandInSlab(SMALL) as source, StandInSlab(SMALL) as into:
        for block in (5, 2, 9):
            source.write_block(block, content(block, BLOCK))
        one, other = StagedBlocks(source), StagedBlocks(into)
        packed = one.buffer(2 * BLOCK)
        one.pack((5, 2, 9), BLOCK, packed)
        other.unpack(packed, (1, 3, 4), BLOCK)
        part = one.buffer(BLOCK // 4)
        one.pack((5, 2, 9), BLOCK // 2, part)
        other.unpack(part, (1, 3, 4), BLOCK // 2)
        assert packed.device == torch.device("cpu")
        assert [into.read_block(block) for block in (3, 4)] == [content(block, BLOCK) for block in (2, 9)]
        assert into.read_block(1, BLOCK // 2, BLOCK // 4) == content(5, BLOCK)[BLOCK // 2 : BLOCK * 3 // 4]
        assert not any(into.read_block(1, 0, BLOCK // 2)) and not any(into.read_block(1, BLOCK * 3 // 4))


def test_generations_of_many_blocks_are_read_in_their_order() -> None:
    with StandInSlab(SMALL) as slab:
        blocks = StagedBlocks(slab)
        blocks.write_generations((3, 1), (1 << 63, 7))
        assert blocks.generations((1, 3, 0)) == (7, 1 << 63, 0)


class Reader:
    """Bound to the lender, with two of its blocks to fetch."""

    def __init__(self, lender: LocalLender, faults: Faults) -> None:
        self.transport, self.slab = staged_reader(READER, LAYOUT, SMALL, faults)
        self.transport.bind(lender.binding())
        self.handle = handle_of((5, 6), (7, 7), tuple(lender.write(block, 7, seed=block) for block in (5, 6)))

    def fetch(self) -> int:
        return self.transport.fetch(self.handle, target((0, 1)))

    def close(self) -> None:
        self.transport.close()
        self.slab.close()


def test_an_owner_whose_device_fails_is_lost_and_may_be_asked_again(lender: LocalLender) -> None:
    reader = Reader(lender, NoFaults())
    stand_in(lender).fails = "an illegal address"
    with pytest.raises(PeerLost, match="lender@1 is gone"):
        reader.fetch()
    stand_in(lender).fails = ""
    assert reader.fetch() == 2 * BLOCK
    assert [reader.slab.read_block(block) for block in (0, 1)] == [content(5, BLOCK), content(6, BLOCK)]
    reader.close()


def test_a_fetch_to_a_device_of_ours_that_fails_ends_before_or_after_bytes_came(lender: LocalLender) -> None:
    reader = Reader(lender, NoFaults())
    reader.slab.stand_in.fails = "no such device"
    with pytest.raises(PeerLost, match="our own device failed: no such device"):
        reader.fetch()
    reader.close()
    reader = Reader(lender, hook := Hook())
    hook.on_copy = lambda block: setattr(reader.slab.stand_in, "fails", "an illegal address")
    with pytest.raises(PeerLost, match="the device failed: an illegal address"):
        reader.fetch()
    reader.close()
