"""What a node is told when it is started, and what it answers once it runs."""

import json
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster import codec
from cluster.api.v1.post_pb2 import NodeStarted, Peer
from cluster.live.config import NodeSettings
from cluster.live.handshake import ClusterToken
from core.costs import NodeCosts
from core.events import NodeJoined
from core.ids import NodeId
from core.mix import Mix, NodeSpec
from core.timers import Timers
from decode_worker.config import PreemptionCosts


@dataclass(frozen=True, slots=True)
class HeadPlace:
    """Where a node finds its head, and the term that it acts in."""

    id: str
    address: str
    term: int


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """Everything that one node needs to start. Carries the cluster token: only for pipes and actor arguments."""

    name: str
    mix: Mix
    settings: NodeSettings
    timers: Timers
    head: HeadPlace
    token: ClusterToken

    def pack(self) -> bytes:
        """As JSON."""
        words = asdict(self) | {"token": self.token.secret.hex()}
        words["settings"]["model"] = str(self.settings.model)
        return json.dumps(words).encode()

    @staticmethod
    def unpack(data: bytes) -> "NodeOrder":
        """The inverse of `pack`."""
        words = json.loads(data)
        settings = NodeSettings(**words["settings"])
        costs, step_costs = words["settings"]["costs"], words["settings"]["step_costs"]
        if step_costs is not None:  # JSON has no tuples
            step_costs["prefill_curve"] = tuple((tokens, seconds) for tokens, seconds in step_costs["prefill_curve"])
        return NodeOrder(
            name=words["name"],
            mix=Mix(**words["mix"]),
            settings=replace(
                settings,
                model=Path(settings.model),
                costs=None if costs is None else PreemptionCosts(**costs),
                step_costs=None if step_costs is None else NodeCosts(**step_costs),
            ),
            timers=Timers(**words["timers"]),
            head=HeadPlace(**words["head"]),
            token=ClusterToken(bytes.fromhex(words["token"])),
        )


def own_address_towards(place: str) -> str:
    """The address of this host from which `host:port` is reached. Nothing is sent."""
    host, port = place.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def mint_node_id(name: str) -> NodeId:
    """A new incarnation of a name; minted by the process itself, at its start."""
    return NodeId(f"{name}@{secrets.token_hex(4)}")


@dataclass(frozen=True, slots=True)
class StartedNode:
    """A node that is ready for work: who it is, where its post is, and how its KV pool is read (a packed `Offer`)."""

    node: NodeId
    spec: NodeSpec
    pid: int
    address: str
    binding: bytes

    def to_wire(self) -> NodeStarted:
        """As it is told to whoever started the node."""
        joined = codec.encode(NodeJoined(self.node, self.spec))
        return NodeStarted(pid=self.pid, address=self.address, binding=self.binding, joined=joined)

    @staticmethod
    def from_wire(wire: NodeStarted) -> "StartedNode":
        """The inverse of `to_wire`. Raises CodecError."""
        joined = codec.decode(wire.joined)
        if not isinstance(joined, NodeJoined):
            raise codec.CodecError(f"a started node says {type(joined).__name__} instead of NodeJoined")
        return StartedNode(joined.node, joined.spec, wire.pid, wire.address, wire.binding)

    def as_peer(self) -> Peer:
        """As the other nodes are told of it."""
        return Peer(id=self.node, address=self.address, binding=self.binding)
