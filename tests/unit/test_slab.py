import logging
import os
from dataclasses import replace

import numpy as np
import pytest

from core.errors import LayoutMismatch
from core.ids import LayoutId, NodeId
from core.kv import KVLayout, SlabShape
from kv_transfer import slab as slab_module
from kv_transfer.digest import DIGEST_BYTES, block_digest
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding

SHAPE = SlabShape(KVLayout(2, 2, 4, 4, "float32"), 5)


@pytest.mark.parametrize("make", [lambda: Slab.anonymous(SHAPE, "test"), lambda: Slab.in_process(SHAPE)])
def test_a_slab_lies_as_its_shape_says(make: type[Slab]) -> None:
    with make() as slab:  # type: ignore[call-arg]
        assert len(slab.buffer) == SHAPE.total_bytes
        slab.set_generation(3, 2**33)
        assert slab.buffer[24:32] == (2**33).to_bytes(8, "little")
        slab.block(3)[:4] = b"abcd"
        at = SHAPE.block_offset(3)
        assert bytes(slab.buffer[at : at + 4]) == b"abcd"
        assert bytes(slab.view.blocks[3, :4]) == b"abcd"
        assert slab.view.blocks.shape == (5, SHAPE.layout.bytes_per_block)


def test_anonymous_memory_has_its_name_and_no_path_and_cannot_change_its_size() -> None:
    with Slab.anonymous(SHAPE, "n@1") as slab:
        assert slab.fd is not None
        assert "memfd:penstock-n@1" in os.readlink(f"/proc/self/fd/{slab.fd}")
        assert not os.get_inheritable(slab.fd)
        for size in (0, SHAPE.total_bytes + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(slab.fd, size)


def resident_bytes(slab: Slab) -> int:
    """How much of an anonymous slab has pages."""
    assert slab.fd is not None
    return os.stat(slab.fd).st_blocks * 512


def test_populated_memory_has_all_its_pages_and_what_was_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_module, "POPULATE_BYTES", 8192)
    told: list[tuple[int, int]] = []
    with Slab.anonymous(replace(SHAPE, num_blocks=100), "test") as slab:
        assert resident_bytes(slab) == 0
        slab.block(3)[:4] = b"abcd"
        slab.populate(lambda done, total: told.append((done, total)))
        assert resident_bytes(slab) >= slab.shape.total_bytes
        assert bytes(slab.block(3)[:5]) == b"abcd\0"
        assert [done for done, _ in told[:2]] == [8192, 16384] and told[-1] == (slab.shape.total_bytes,) * 2


def test_memory_that_the_kernel_cannot_populate_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slab_module, "MADV_POPULATE_WRITE", 9999)
    with caplog.at_level(logging.INFO), Slab.anonymous(SHAPE, "test") as slab:
        slab.populate()
        assert resident_bytes(slab) == 0
    assert "cannot touch KV memory ahead" in caplog.text


def test_closing_twice_is_fine_and_what_lies_over_the_memory_stays_readable() -> None:
    slab = Slab.anonymous(SHAPE, "test")
    over = np.frombuffer(slab.buffer, np.uint8)
    slab.buffer[0] = 9
    slab.close()
    slab.close()
    assert over[0] == 9
    assert slab.fd is None


def test_a_digest_has_its_length_and_is_the_same_for_every_kind_of_bytes() -> None:
    data = bytes(range(256))
    digest = block_digest(data)
    assert len(digest) == DIGEST_BYTES
    assert digest == block_digest(memoryview(data)) == block_digest(np.frombuffer(data, np.uint8))
    assert digest != block_digest(data[::-1])


def test_a_binding_travels_unchanged() -> None:
    binding = Binding(NodeId("a@1"), LayoutId("l"), SHAPE, "shm", "address")
    assert Binding.unpack(binding.pack()) == binding


@pytest.mark.parametrize(
    "shape",
    [
        SlabShape(KVLayout(2, 2, 4, 4, "int3"), 5),
        SlabShape(KVLayout(0, 2, 4, 4, "float32"), 5),
        SlabShape(KVLayout(2, 2, 4, -4, "float32"), 5),
        SlabShape(KVLayout(2, 2, 4, 2**32, "float32"), 5),
        SlabShape(KVLayout(2, 2, 4, True, "float32"), 5),
        SlabShape(KVLayout(2, 2, 4, 4, "float32", 1, 1), 5),
        SlabShape(SHAPE.layout, 0),
    ],
)
def test_a_binding_with_an_impossible_shape_is_refused(shape: SlabShape) -> None:
    with pytest.raises(LayoutMismatch, match="not a binding"):
        Binding.unpack(Binding(NodeId("a@1"), LayoutId("l"), shape, "shm", "address").pack())


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x96\x01\x02\x03\x04\x05\x06", b"\xc1", b"x" * 5000, b"\x91" * 2000])
def test_bytes_that_are_no_binding_are_refused(data: bytes) -> None:
    with pytest.raises(LayoutMismatch, match="not a binding"):
        Binding.unpack(data)
