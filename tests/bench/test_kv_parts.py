"""The parts of `penstock bench kv`, in numbers that can be checked by hand."""

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cluster.bench.kv_blocks import Contents, Run, Runs, WrongBytes, first_arms
from cluster.bench.kv_findings import Handoff, KVFindings, percentile
from cluster.bench.kv_plan import (
    EMBEDDED,
    GIB,
    KIB,
    LARGE,
    LAYOUTS,
    MIB,
    MOONCAKE,
    NIXL,
    SIZES,
    Cell,
    KVPlan,
    add_kv_flags,
    kv_plan,
    size_text,
)
from cluster.bench.kv_report import figures, samples
from cluster.bench.kv_transports import NotHere, make_transport
from cluster.bench.shapes import write_config
from cluster.bench.unverified import TRUSTED, unverified
from cluster.service import EMBEDDED_MODEL
from core.errors import ConfigError, Corrupt, LeaseExpired
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, SlabShape
from engine.model_info import LoadFormat, read_model_info
from kv_transfer.digest import block_digest
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.slab import Slab


def plan_of(*words: str) -> KVPlan:
    parser = argparse.ArgumentParser()
    add_kv_flags(parser)
    return kv_plan(parser.parse_args(list(words)))


# ── which blocks, and what they hold ─────────────────────────────────────────────────────────────────────────────────


def test_a_small_transfer_never_reads_the_blocks_that_it_read_last() -> None:
    runs = Runs(64)
    read = [block for _ in range(4) for block in runs.next(16, False).sources]
    assert read == list(range(64))
    assert list(runs.next(16, False).sources) == list(range(16)), "and then from the beginning"


def test_scattered_blocks_lie_alone_on_both_sides_and_are_all_of_them() -> None:
    run = Runs(4096).next(4096, True)
    assert sorted(run.sources) == sorted(run.targets) == list(range(4096))
    pairs = list(zip(run.sources, run.targets, strict=True))
    joined = sum(b == (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    assert joined == 0


def test_a_block_that_is_wrong_or_another_ones_is_noticed() -> None:
    contents = Contents(64)
    blocks = np.zeros((8, 64), np.uint8)
    contents.fill(blocks)
    contents.check(blocks, Run((3,), (3,)))
    with pytest.raises(WrongBytes, match="block 4 does not hold what block 3 held"):
        contents.check(blocks, Run((3,), (4,)))
    blocks[5, 20] ^= 1
    with pytest.raises(WrongBytes):
        contents.check(blocks, Run((4, 5, 6), (4, 5, 6)))


def test_the_two_arms_of_a_turn_change_places_each_time_and_each_turn() -> None:
    assert list(first_arms(4, 0)) == [False, True, False, True]
    assert list(first_arms(4, 1)) == [True, False, True, False]


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_measured_blocks_are_those_of_the_models(tmp_path: Path) -> None:
    embedded = read_model_info(EMBEDDED_MODEL)
    assert LAYOUTS[EMBEDDED] == embedded.kv_layout(16, "float32")
    write_config("llama-8b", "bfloat16", tmp_path)
    assert LAYOUTS[LARGE] == read_model_info(tmp_path, LoadFormat.DUMMY).kv_layout(16, "bfloat16")
    write_config("llama-8b-kv", "float32", tmp_path)
    toy = read_model_info(tmp_path, LoadFormat.DUMMY)
    assert toy.kv_layout(16, "float32").bytes_per_block == LAYOUTS[LARGE].bytes_per_block
    assert toy.vocab_size == embedded.vocab_size, "it borrows the tokenizer"
    assert min(toy.max_model_len, embedded.max_model_len) >= max(plan_of().lengths) + plan_of().num_answered


def test_sizes_that_memory_does_not_allow_are_dropped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.bench.kv_plan.available_memory_bytes", lambda: 4 * GIB)
    assert plan_of().sizes == SIZES[:-1]
    assert plan_of().dropped == (GIB,)
    monkeypatch.setattr("cluster.bench.kv_plan.available_memory_bytes", lambda: 64 * GIB)
    assert plan_of().sizes == SIZES
    assert plan_of().pool_bytes == GIB
    assert plan_of("--sizes", "64KiB").pool_bytes == 256 * MIB, "larger than a cache"


def test_every_wrong_flag_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of("--repeats", "0", "--threads", "0", "--sizes", "1GB", "100KiB", "0MiB", "1MiB")
    said = " ".join(caught.value.problems)
    assert all(word in said for word in ("--repeats", "--threads", "1GB", "100KiB", "0MiB"))
    assert "'1MiB'" not in said


def test_a_layout_is_measured_from_one_block_on_and_peers_have_no_digests() -> None:
    cells = plan_of().cells(LARGE, ("shm", NIXL))
    assert min(cell.num_bytes for cell in cells) == 8 * MIB
    assert {cell.is_verified for cell in cells if cell.transport == NIXL} == {False}
    assert max(cell.num_bytes for cell in cells if cell.transport == NIXL) == 256 * MIB
    small = plan_of().cells(EMBEDDED, ("shm",))
    assert min(cell.num_bytes for cell in small) == 64 * KIB
    assert len(small) == 4 * len(plan_of().sizes)
    assert small[0].num_blocks == 1
    assert {size_text(cell.num_bytes) for cell in small} >= {"64KiB", "1MiB", "8MiB", "256MiB"}


# ── ratios ───────────────────────────────────────────────────────────────────────────────────────────────────────────

CELL = Cell("shm", EMBEDDED, 8 * MIB, is_scattered=True, is_verified=False)


def found_in(plan: KVPlan) -> KVFindings:
    found = KVFindings(replace(plan, transports=("shm",)))
    for cell, seconds in (
        (CELL, 2.0),
        (replace(CELL, is_scattered=False), 1.6),
        (replace(CELL, is_verified=True), 4.0),
        (replace(CELL, transport=NIXL), 6.0),
    ):
        found.note(cell, [seconds, seconds, 90.0], [1.0, 1.0, 1.0])
        found.note(cell, [2 * seconds, 2 * seconds, 90.0], [2.0, 2.0, 2.0])
    return found


def test_the_figures_have_the_promised_names_and_what_did_not_run_has_none() -> None:
    named = figures(found_in(plan_of("--sizes", "8MiB", "--no-handoff")))
    assert named == {
        "kv.shm.of_memcpy_8mib": 0.5,
        "kv.shm.scattered_over_contiguous": 1.25,
        "kv.shm.verified_of_memcpy_8mib": 0.25,
        "kv.shm.vs_nixl": 3.0,
    }
    found = found_in(plan_of("--sizes", "8MiB", "--no-handoff"))
    found.note(replace(CELL, transport=MOONCAKE), [20.0], [1.0])
    found.note(replace(CELL, transport=MOONCAKE), [40.0], [1.0])
    assert figures(found)["kv.shm.vs_mooncake"] == 10.0
    assert {sample["kind"] for sample in samples(found)} == {"plan", "arms", "transfer"}


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0


def handoff(length: int, gap_s: float, model: str = EMBEDDED) -> Handoff:
    stamps = (10.0, 10.0 + gap_s, 10.0 + gap_s + 0.01, 10.0 + gap_s + 0.02, 10.0 + gap_s + 0.5)
    return Handoff(model, length, stamps, 0.001, 0.002, 0.003, 0.1, 0.004)


def test_the_tax_is_what_lies_between_the_tokens_less_a_step_over_the_fetch_alone() -> None:
    one = handoff(256, 0.022)
    assert one.step_s == pytest.approx(0.01)
    assert one.tax == pytest.approx((0.022 - 0.01) / 0.004)
    assert one.ledger_tax == pytest.approx(0.006 / 0.004)


def test_the_figure_is_the_tax_of_the_length_where_it_is_greatest() -> None:
    found = KVFindings(plan_of())
    found.handoffs = [handoff(256, 0.022), handoff(256, 0.030), handoff(256, 0.026), handoff(512, 0.018)]
    found.handoffs += [handoff(256, 0.014, LARGE)]
    named = figures(found)
    assert named["kv.handoff_tax_embedded"] == pytest.approx((0.026 - 0.01) / 0.004)
    assert named["kv.handoff_tax"] == pytest.approx(1.0)


# ── without digests ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", [EMBEDDED, LARGE])
def test_only_within_the_measurement_a_fetch_looks_at_no_digest(layout: str) -> None:
    shape, exchange, generations = SlabShape(LAYOUTS[layout], 2), Exchange(), (7, 7)
    with Slab.in_process(shape) as owned, Slab.in_process(shape) as read:
        owner = InprocTransport(NodeId("owner@1"), LayoutId("x"), owned, exchange)
        reader = InprocTransport(NodeId("reader@1"), LayoutId("x"), read, exchange)
        reader.bind(owner.binding())
        Contents(shape.layout.bytes_per_block).fill(owned.view.blocks)
        owned.view.generations[:] = 7
        digests = tuple(block_digest(block) for block in owned.view.blocks)
        trusted = KVHandle(AttemptId("a#0"), NodeId("owner@1"), LayoutId("x"), 0, (0, 1), generations, (TRUSTED,) * 2)
        into = FetchTarget((1, 0), (1, 1))
        with unverified():
            assert reader.fetch(trusted, into) == 2 * shape.layout.bytes_per_block
            Contents(shape.layout.bytes_per_block).check(read.view.blocks, Run((0, 1), (1, 0)))
            with pytest.raises(LeaseExpired):
                reader.fetch(replace(trusted, generations=(7, 6)), into)
        with pytest.raises(Corrupt):
            reader.fetch(trusted, into)
        assert reader.fetch(replace(trusted, digests=digests), into) == 2 * shape.layout.bytes_per_block
        reader.close()
        owner.close()


def test_a_transport_that_is_not_to_be_had_says_why(tmp_path: Path) -> None:
    with Slab.in_process(SlabShape(LAYOUTS[EMBEDDED], 1)) as slab, pytest.raises(NotHere, match="not in this version"):
        make_transport("pigeon", NodeId("a@1"), LayoutId("x"), slab, bytes(32))
