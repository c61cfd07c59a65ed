"""What a post carries, and what it expects of its owner and of a stream."""

from collections.abc import Iterable
from typing import Protocol

from cluster.api.v1.post_pb2 import AccessChanged, ClusterShown, Envelope, NodeReport, PeersChanged
from cluster.codec import CodecError, encode_many
from core.events import Event
from core.ids import Address

MAX_ENVELOPE_BYTES = 8 << 20

Letters = Iterable[tuple[Address, Event]]
Notice = PeersChanged | NodeReport | ClusterShown | AccessChanged
NOTICES: dict[str, type[Notice]] = {
    "peers_changed": PeersChanged,
    "node_report": NodeReport,
    "cluster_shown": ClusterShown,
    "access_changed": AccessChanged,
}
"""By the field of an envelope that carries one."""


class Mailbox(Protocol):
    """Who owns a post; called in its loop, and must neither block nor raise."""

    def on_letters(self, peer: str, letters: list[tuple[Address, Event]]) -> None:
        """Events of one envelope, in the order sent."""

    def on_notice(self, peer: str, notice: Notice) -> None:
        """A message from shell to shell."""

    def on_linked(self, peer: str) -> None:
        """The first stream of a session stands."""

    def on_severed(self, peer: str, why: str) -> None:
        """The session is over; what it had not delivered is lost."""


class Wire(Protocol):
    """One side of a stream, as gRPC's server and client give it."""

    async def read(self) -> object:
        """The next envelope, or `grpc.aio.EOF`."""

    async def write(self, message: Envelope) -> None:
        """Sends an envelope."""


def payloads(letters: list[tuple[Address, Event]]) -> Iterable[bytes]:
    """The letters of a turn as one payload, or as several where one would be over the limit. Raises CodecError."""
    try:
        payload = encode_many(letters)
    except CodecError:
        if len(letters) == 1:
            raise
    else:
        if len(payload) <= MAX_ENVELOPE_BYTES:
            return [payload]
        if len(letters) == 1:
            raise CodecError(f"{type(letters[0][1]).__name__}: {len(payload)} bytes; the limit is {MAX_ENVELOPE_BYTES}")
    middle = len(letters) // 2
    return [*payloads(letters[:middle]), *payloads(letters[middle:])]
