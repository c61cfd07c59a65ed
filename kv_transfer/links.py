"""What a node holds to move KV: its transports side by side, and for each peer the one that the pair uses."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgpack

from core.errors import ConfigError, LayoutMismatch, PeerLost, TransferError
from core.ids import AttemptId, NodeId
from core.kv import FetchTarget, KVHandle
from core.transfer import MovedKV, PeerLink, TransferReport
from kv_transfer.choose import AUTO, MEASURED, Choice, Place, Way, check_asked, choose, possible, staging
from kv_transfer.frames import Refusals
from kv_transfer.transport import Binding, Transport

LOG = logging.getLogger("penstock.kv")

MAX_OFFER_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Offer:
    """A node's pool as its peers are told of it: where the node runs, and a binding for each of its transports."""

    place: Place
    bindings: tuple[Binding, ...]

    @property
    def node(self) -> NodeId:
        """Whose it is."""
        return self.bindings[0].node

    def pack(self) -> bytes:
        """As it travels: equal offers give equal bytes."""
        place, bindings = self.place, [binding.pack() for binding in self.bindings]
        packed: bytes = msgpack.packb((place.host, place.pid, place.gpu, bindings))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> "Offer":
        """The inverse of `pack`. Raises LayoutMismatch for bytes that are no offer."""
        try:
            if len(data) > MAX_OFFER_BYTES:
                raise ValueError(f"{len(data)} bytes; the limit is {MAX_OFFER_BYTES}")
            host, pid, gpu, packed = msgpack.unpackb(data, use_list=False)
            if type(host) is not str or type(pid) is not int or type(gpu) is not str or not packed:
                raise ValueError("a place or the list of bindings is malformed")
            bindings = tuple(Binding.unpack(one) for one in packed)
        except (ValueError, TypeError) as error:
            raise LayoutMismatch(f"not an offer of bindings: {error}") from error
        names = {binding.transport for binding in bindings}
        if len({binding.node for binding in bindings}) > 1 or len(names) < len(bindings):
            raise LayoutMismatch("not an offer of bindings: they belong to several nodes, or two are of one transport")
        return cls(Place(host, pid, gpu), bindings)


@runtime_checkable
class Measurable(Protocol):
    """A transport that can say how fast it reads from a bound peer."""

    def measure(self, peer: NodeId) -> float:
        """Bytes a second. Raises TransferError."""
        ...


@runtime_checkable
class Refusing(Protocol):
    """A transport that counts what it turned away, by one word."""

    refusals: Refusals


@dataclass(slots=True)
class _Route:
    """How one peer is read. `at` counts the ways that failed and were left behind."""

    offer: Offer
    choice: Choice
    own: Place
    at: int = 0
    why_left: str = ""
    changing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def way(self) -> Way:
        return self.choice.order[self.at]

    @property
    def link(self) -> PeerLink:
        why = f"{self.way.name} ({self.why_left})" if self.at else self.choice.message
        return PeerLink(self.offer.node, self.way.name, why + staging(self.way, self.own, self.offer.place))


class Links:
    """All transports of one node.

    Owns: the transports, which peer is read by which, how much was read, and the counts, which only rise:
    `binding_refused.malformed`, `.transport` (nothing joins the pair) and `.layout`, `binding_failed` (nobody there, or
    no proof), `fallback`, `staged` (peers that were bound by a way through host memory though KV lies on a GPU), and
    `refused.<transport>.<reason>` of what a transport turned away: frames, strangers at its door, what was not lent.
    """

    def __init__(self, transports: Sequence[Transport], asked: str = AUTO, place: Place | None = None) -> None:
        check_asked(asked)
        self._transports = {transport.name: transport for transport in transports}
        self._asked = asked
        self._place = place or Place.here()
        self._offer = Offer(self._place, tuple(transport.binding() for transport in transports))
        self._routes: dict[NodeId, _Route] = {}
        self._speeds: dict[NodeId, dict[str, float]] = {}
        self._counts: Counter[str] = Counter()
        self._fetches: Counter[str] = Counter()
        self._moved_bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    def offer(self) -> bytes:
        """Our own pool, packed, to be told to peers."""
        return self._offer.pack()

    def bind(self, packed: bytes) -> NodeId:
        """Make a peer readable by the best transport of the pair, in place of an older offer of the same node.

        Raises: LayoutMismatch when its KV cannot be mapped onto ours or nothing joins us; PeerLost when it is not
        there.
        """
        doubt = "malformed"
        try:
            offer, doubt = Offer.unpack(packed), "transport"
            ways, doubt = self._possible(offer), "layout"
            route = _Route(offer, choose(self._asked, ways, self._measured(offer, ways)), self._place)
            self._bind_best(route)
        except LayoutMismatch:
            self._count(f"binding_refused.{doubt}")
            raise
        except PeerLost:
            self._count("binding_failed")
            raise
        for name in self._transports.keys() - {route.way.name}:
            self._transports[name].unbind(offer.node)
        LOG.log(logging.WARNING if route.at else logging.INFO, "kv from %s: %s", offer.node, route.link.why)
        with self._lock:
            self._routes[offer.node] = route
            if route.at:
                self._counts["fallback"] += route.at
        self._note_staging(route)
        return offer.node

    def _bind_best(self, route: _Route) -> None:
        """By the first way of its order that can be bound: what joins two places on paper may not, as two GPUs of one
        host that cannot reach each other. Raises as `bind`."""
        while True:
            try:
                return self._bind_by(route.way, route.offer)
            except PeerLost as error:
                if not route.way.falls_back or route.at + 1 == len(route.choice.order):
                    raise
                route.at, route.why_left = route.at + 1, f"instead of {route.way.name}: {error}"

    def _note_staging(self, route: _Route) -> None:
        if staging(route.way, self._place, route.offer.place):
            self._count("staged")

    def _possible(self, offer: Offer) -> tuple[Way, ...]:
        names = {binding.transport for binding in offer.bindings} & self._transports.keys()
        try:
            return possible(self._asked, self._place, offer.place, names)
        except ConfigError as error:
            raise LayoutMismatch(f"{offer.node}: {error}") from error

    def _bind_by(self, way: Way, offer: Offer) -> None:
        binding = next(binding for binding in offer.bindings if binding.transport == way.name)
        self._transports[way.name].bind(binding)

    def _measured(self, offer: Offer, ways: Sequence[Way]) -> dict[str, float]:
        """Speeds of this peer's transports, where that is asked for and there is a choice; measured once a peer."""
        if self._asked != MEASURED or len(ways) < 2:
            return {}
        found = self._speeds.setdefault(offer.node, {})
        for way in ways:
            transport = self._transports[way.name]
            if way.name in found or not isinstance(transport, Measurable):
                continue
            try:
                self._bind_by(way, offer)
                found[way.name] = transport.measure(offer.node)
                transport.unbind(offer.node)
            except TransferError as error:
                LOG.warning("kv from %s: %s cannot be measured: %s", offer.node, way.name, str(error))
                found[way.name] = 0.0
        return found

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; fetches from it that still run end as PeerLost. An unknown peer is fine. Does not wait."""
        with self._lock:
            self._routes.pop(peer, None)
            self._speeds.pop(peer, None)
        for transport in self._transports.values():
            transport.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours, by the pair's transport. Raises as `Transport.fetch`."""
        route = self._routes.get(handle.owner)
        if route is None:
            raise PeerLost(f"{handle.owner} is not bound")
        while True:
            at, way = route.at, route.way
            try:
                return self._moved(way.name, self._transports[way.name].fetch(handle, into))
            except PeerLost as error:
                if not way.falls_back or not self._fall_back(route, at, error):
                    raise

    def _moved(self, transport: str, num_bytes: int) -> int:
        with self._lock:
            self._fetches[transport] += 1
            self._moved_bytes[transport] += num_bytes
        return num_bytes

    def _fall_back(self, route: _Route, at: int, error: PeerLost) -> bool:
        """Whether the pair goes on by its next transport; of several fetches that fail, the first one changes it."""
        node, order = route.offer.node, route.choice.order
        with route.changing:
            if route.at > at:
                return True
            if at + 1 == len(order) or self._routes.get(node) is not route:
                return False
            failed, after = order[at].name, order[at + 1].name
            try:
                self._bind_by(order[at + 1], route.offer)
            except TransferError as also:
                LOG.warning("kv from %s: %s failed, and %s as well: %s", node, failed, after, str(also))
                return False
            if not self._advance(route, f"instead of {failed}: {error}"):
                self._transports[after].unbind(node)
                return False
        self._note_staging(route)
        self._transports[failed].unbind(node)
        LOG.warning("kv from %s: %s instead of %s from now on: %s", node, after, failed, str(error))
        return True

    def _advance(self, route: _Route, why: str) -> bool:
        """Unless the peer was unbound meanwhile."""
        with self._lock:
            if self._routes.get(route.offer.node) is not route:
                return False
            route.at, route.why_left = route.at + 1, why
            self._counts["fallback"] += 1
            return True

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def counts(self) -> dict[str, int]:
        """What was refused, failed or went another way so far; names as the class says."""
        with self._lock:
            counts = dict(self._counts)
        for name, transport in self._transports.items():
            if isinstance(transport, Refusing):
                found = transport.refusals.counts().items()
                counts.update({f"refused.{name}.{reason}": count for reason, count in found})
        return counts

    def report(self) -> TransferReport:
        """How each bound peer is read, the counts, and what was read by which transport, for people."""
        with self._lock:
            links = [self._routes[peer].link for peer in sorted(self._routes)]
            moved = [MovedKV(way, number, self._moved_bytes[way]) for way, number in sorted(self._fetches.items())]
        return TransferReport(tuple(links), tuple(sorted(self.counts().items())), tuple(moved))

    def way_to(self, peer: NodeId) -> str | None:
        """The name of the transport by which a peer is read now; None where it is not bound."""
        route = self._routes.get(peer)
        return None if route is None else route.way.name

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Let `reader` read this attempt's lease, by whichever transport it chose."""
        for transport in self._transports.values():
            transport.lend(attempt, reader)

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Make reading through this lease impossible, as far as each transport can."""
        for transport in self._transports.values():
            transport.revoke(attempt, reader)

    def close(self) -> None:
        """Give back everything that the transports own, after running fetches have ended. Calling it twice is fine."""
        for transport in self._transports.values():
            transport.close()
