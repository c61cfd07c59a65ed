"""What a node's links choose for each peer, and what they do when a way fails (over inproc under several names)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from cluster.live.transports import Endpoint, open_links
from core.errors import LayoutMismatch, PeerLost
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from core.transfer import MovedKV, PeerLink, TransferReport
from kv_transfer.choose import Place
from kv_transfer.links import Links, Offer
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding, check_fits

SHAPE = SlabShape(KVLayout(1, 1, 4, 4, "float32"), 8)
LAYOUT = LayoutId("layout-a")
TOKEN = b"a cluster token of 32 bytes here"
OWNER, READER = NodeId("owner@1"), NodeId("reader@1")
HERE, NEIGHBOUR, ELSEWHERE = Place("h", 1), Place("h", 2), Place("i", 3)
HANDLE = KVHandle(AttemptId("r#1"), OWNER, LAYOUT, 0, (1,), (7,), (b"d" * 16,))
INTO = FetchTarget((2,), (9,))


@dataclass
class Recorder:
    """A transport that notes what it is asked to do. It moves nothing; `failing` makes its fetches end as PeerLost."""

    name: str
    node: NodeId = READER
    speed: float = 0.0
    failing: bool = False
    bindable: bool = True
    bound: set[NodeId] = field(default_factory=set)
    deeds: list[str] = field(default_factory=list)

    def binding(self) -> Binding:
        return Binding(self.node, LAYOUT, SHAPE, self.name, f"{self.name}-address")

    def bind(self, peer: Binding) -> None:
        check_fits(peer, self.binding())
        if not self.bindable:
            raise PeerLost(f"{peer.node} is not there")
        self.bound.add(peer.node)

    def unbind(self, peer: NodeId) -> None:
        self.bound.discard(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        if handle.owner not in self.bound:
            raise PeerLost(f"{handle.owner} is not bound")
        self.deeds.append("fetch")
        if self.failing:
            raise PeerLost(f"{handle.owner}: aborted")
        return 1

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        self.deeds.append(f"lend {attempt} to {reader}")

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        self.deeds.append(f"revoke {attempt} from {reader}")

    def close(self) -> None:
        self.deeds.append("close")

    def measure(self, peer: NodeId) -> float:
        assert peer in self.bound
        self.deeds.append("measure")
        return self.speed


def offer(*names: str, place: Place = NEIGHBOUR, node: NodeId = OWNER) -> bytes:
    return Offer(place, tuple(Recorder(name, node).binding() for name in names)).pack()


@contextmanager
def links(*transports: Recorder, asked: str = "auto") -> Iterator[Links]:
    made = Links(transports, asked, HERE)
    yield made
    made.close()


def test_an_offer_survives_its_way_and_tells_whose_it_is() -> None:
    packed = offer("shm", "gloo", place=Place("h", 2, "0000:3B:00.0"))
    assert Offer.unpack(packed).pack() == packed
    assert Offer.unpack(packed).node == OWNER
    with links(Recorder("shm"), Recorder("gloo")) as made:
        told = Offer.unpack(made.offer())
        assert (told.place, [binding.transport for binding in told.bindings]) == (HERE, ["shm", "gloo"])


BINDING = Recorder("shm", OWNER).binding()
OTHER = Recorder("gloo", NodeId("other@1")).binding()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        BINDING.pack(),
        Offer(NEIGHBOUR, ()).pack(),
        Offer(NEIGHBOUR, (BINDING, OTHER)).pack(),
        Offer(NEIGHBOUR, (BINDING, BINDING)).pack(),
        Offer(Place("h" * 20_000, 1), (BINDING,)).pack(),
        Offer(Place("h", 1, 7), (BINDING,)).pack(),  # type: ignore[arg-type]
        Offer(NEIGHBOUR, (BINDING,)).pack()[:-1],
    ],
)
def test_bytes_that_are_no_offer_of_one_node_are_refused_and_counted(packed: bytes) -> None:
    with links(Recorder("shm")) as made:
        with pytest.raises(LayoutMismatch):
            made.bind(packed)
        assert made.counts() == {"binding_refused.malformed": 1}


def test_each_peer_is_read_by_the_best_way_of_its_pair(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shm, gloo = Recorder("shm"), Recorder("gloo")
    far = NodeId("far@1")
    with links(shm, gloo) as made:
        assert made.bind(offer("shm", "gloo")) == OWNER
        assert made.bind(offer("shm", "gloo", place=ELSEWHERE, node=far)) == far
        assert (made.way_to(OWNER), made.way_to(far)) == ("shm", "gloo")
        assert (shm.bound, gloo.bound) == ({OWNER}, {far})
        assert made.fetch(HANDLE, INTO) == 1
        assert made.fetch(replace(HANDLE, owner=far), INTO) == 1
    assert (shm.deeds, gloo.deeds) == (["fetch", "close"], ["fetch", "close"])
    assert "kv from owner@1: shm (automatic: both nodes on one host" in caplog.text
    assert "kv from far@1: gloo (automatic: a private network" in caplog.text


def test_a_peer_with_nothing_in_common_is_refused_with_the_reason_and_counted() -> None:
    with links(Recorder("shm")) as made:
        with pytest.raises(LayoutMismatch, match="owner@1: transport: nothing joins these two; both have: shm"):
            made.bind(offer("shm", place=ELSEWHERE))
        assert made.counts() == {"binding_refused.transport": 1}
        with pytest.raises(PeerLost, match="owner@1 is not bound"):
            made.fetch(HANDLE, INTO)


def test_a_peer_of_another_layout_or_out_of_reach_is_counted_by_its_reason() -> None:
    strange = Binding(OWNER, LayoutId("layout-b"), SHAPE, "shm", "shm-address")
    with links(Recorder("shm")) as made, pytest.raises(LayoutMismatch):
        made.bind(Offer(NEIGHBOUR, (strange,)).pack())
    assert made.counts() == {"binding_refused.layout": 1}
    with links(Recorder("shm", bindable=False)) as made, pytest.raises(PeerLost):
        made.bind(offer("shm"))
    assert made.counts() == {"binding_failed": 1}


def test_a_way_that_was_asked_for_is_not_replaced_by_another() -> None:
    with links(Recorder("shm"), Recorder("gloo"), asked="gloo") as made:
        made.bind(offer("shm", "gloo"))
        assert made.way_to(OWNER) == "gloo"
        with pytest.raises(LayoutMismatch, match="gloo needs a private network"):
            made.bind(offer("shm"))


def test_a_lease_is_lent_and_revoked_by_every_way_because_the_reader_chooses() -> None:
    shm, gloo = Recorder("shm"), Recorder("gloo")
    with links(shm, gloo) as made:
        made.lend(AttemptId("r#1"), READER)
        made.revoke(AttemptId("r#1"), READER)
    assert shm.deeds == gloo.deeds == ["lend r#1 to reader@1", "revoke r#1 from reader@1", "close"]


def test_the_fastest_way_is_measured_once_for_each_peer() -> None:
    shm, gloo = Recorder("shm", speed=1e9), Recorder("gloo", speed=2e9)
    with links(shm, gloo, asked="measured") as made:
        made.bind(offer("shm", "gloo"))
        made.bind(offer("shm", "gloo"))
        assert made.way_to(OWNER) == "gloo"
        assert (shm.bound, gloo.bound) == (set(), {OWNER})
        assert shm.deeds == gloo.deeds == ["measure"]


def test_a_way_that_cannot_even_be_measured_is_the_slowest() -> None:
    shm, gloo = Recorder("shm", speed=1e9, bindable=False), Recorder("gloo", speed=2e9)
    with links(shm, gloo, asked="measured") as made:
        made.bind(offer("shm", "gloo"))
        assert made.way_to(OWNER) == "gloo"


def test_a_pair_whose_nccl_aborts_goes_on_by_the_host_path_within_the_same_fetch() -> None:
    nccl, gloo = Recorder("nccl", failing=True), Recorder("gloo")
    with links(nccl, gloo) as made:
        made.bind(offer("nccl", "gloo"))
        assert made.way_to(OWNER) == "nccl"
        assert made.fetch(HANDLE, INTO) == 1
        assert made.way_to(OWNER) == "gloo"
        assert made.fetch(HANDLE, INTO) == 1
        assert (nccl.deeds, gloo.deeds) == (["fetch"], ["fetch", "fetch"])
        assert (nccl.bound, gloo.bound) == (set(), {OWNER})
        assert made.counts() == {"fallback": 1}
        assert made.report() == TransferReport(
            (PeerLink(OWNER, "gloo", "gloo (instead of nccl: owner@1: aborted)"),),
            (("fallback", 1),),
            (MovedKV("gloo", num_fetches=2, num_bytes=2),),
        )
        made.bind(offer("nccl", "gloo"))
        assert made.way_to(OWNER) == "nccl", "a new offer is a new start"


ONE_GPU, OTHER_GPU = Place("h", 1, "3B"), Place("h", 2, "5E")


def test_gpus_that_cannot_map_each_other_are_joined_by_the_next_way_at_once(caplog: pytest.LogCaptureFixture) -> None:
    ipc, nccl, gloo = Recorder("cuda_ipc", bindable=False), Recorder("nccl"), Recorder("gloo")
    made = Links((ipc, nccl, gloo), "auto", ONE_GPU)
    made.bind(offer("cuda_ipc", "nccl", "gloo", place=OTHER_GPU))
    (link,) = made.report().links
    assert (link.transport, link.why) == ("nccl", "nccl (instead of cuda_ipc: owner@1 is not there)")
    assert made.counts() == {"fallback": 1}
    assert made.fetch(HANDLE, INTO) == 1
    assert (nccl.bound, gloo.bound) == ({OWNER}, set())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_host_path_between_gpus_is_said_and_counted_however_it_came_about() -> None:
    staged = "; KV of GPUs is staged through host memory"
    nccl, gloo = Recorder("nccl", failing=True), Recorder("gloo")
    first = Links((Recorder("cuda_ipc", bindable=False), Recorder("nccl", bindable=False), gloo), "auto", ONE_GPU)
    first.bind(offer("cuda_ipc", "nccl", "gloo", place=OTHER_GPU))
    assert first.counts() == {"fallback": 2, "staged": 1}
    assert first.report().links[0].why == f"gloo (instead of nccl: owner@1 is not there){staged}"
    later = Links((nccl, Recorder("gloo")), "auto", ONE_GPU)
    later.bind(offer("nccl", "gloo", place=OTHER_GPU))
    assert later.counts() == {}
    later.fetch(HANDLE, INTO)
    assert later.counts() == {"fallback": 1, "staged": 1}
    assert later.report().links[0].why == f"gloo (instead of nccl: owner@1: aborted){staged}"
    asked = Links((Recorder("gloo"),), "gloo", ONE_GPU)
    asked.bind(offer("gloo", place=OTHER_GPU))
    assert (asked.counts(), asked.report().links[0].why) == ({"staged": 1}, f"gloo (as asked){staged}")


def test_a_way_that_was_asked_for_by_name_and_cannot_be_bound_has_no_other() -> None:
    made = Links((Recorder("cuda_ipc", bindable=False), Recorder("gloo")), "cuda_ipc", ONE_GPU)
    with pytest.raises(PeerLost, match="is not there"):
        made.bind(offer("cuda_ipc", "gloo", place=OTHER_GPU))
    assert made.counts() == {"binding_failed": 1}


def test_a_peer_that_no_way_reaches_is_lost_and_no_fallback_is_counted() -> None:
    made = Links((Recorder("cuda_ipc", bindable=False), Recorder("gloo", bindable=False)), "auto", ONE_GPU)
    with pytest.raises(PeerLost):
        made.bind(offer("cuda_ipc", "gloo", place=OTHER_GPU))
    assert made.counts() == {"binding_failed": 1}


def test_an_owner_that_is_gone_for_good_is_lost_by_every_way() -> None:
    nccl, gloo = Recorder("nccl", failing=True), Recorder("gloo", bindable=False)
    with links(nccl, gloo) as made:
        made.bind(offer("nccl", "gloo"))
        with pytest.raises(PeerLost, match="aborted"):
            made.fetch(HANDLE, INTO)
        assert made.counts() == {}


def test_shared_memory_that_is_lost_has_no_way_beside_it() -> None:
    shm, gloo = Recorder("shm", failing=True), Recorder("gloo")
    with links(shm, gloo) as made:
        made.bind(offer("shm", "gloo"))
        with pytest.raises(PeerLost, match="aborted"):
            made.fetch(HANDLE, INTO)
        assert gloo.deeds == []


def test_a_peer_that_is_unbound_is_unbound_by_every_way() -> None:
    nccl, gloo = Recorder("nccl", failing=True), Recorder("gloo")
    with links(nccl, gloo) as made:
        made.bind(offer("nccl", "gloo"))
        made.unbind(OWNER)
        with pytest.raises(PeerLost, match="is not bound"):
            made.fetch(HANDLE, INTO)
        assert (nccl.bound, gloo.bound, made.way_to(OWNER)) == (set(), set(), None)


def test_the_transports_of_host_memory_can_be_measured_and_the_faster_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Slab.anonymous(SHAPE, "owner") as theirs, Slab.anonymous(SHAPE, "reader") as ours:
        owner = open_links("measured", Endpoint(OWNER, LAYOUT, theirs, "127.0.0.1", TOKEN))
        reader = open_links("measured", Endpoint(READER, LAYOUT, ours, "127.0.0.1", TOKEN))
        reader.bind(owner.offer())
        assert reader.way_to(OWNER) in ("shm", "gloo")
        reader.close()
        owner.close()
    said = next(message for message in caplog.messages if message.startswith("kv from owner@1: "))
    assert "(measured: " in said and "shm" in said and "gloo" in said and "GB/s" in said
