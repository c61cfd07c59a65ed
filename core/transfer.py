"""What a node says of its KV transfers, for people: by what it reads from whom, and what went wrong."""

from dataclasses import dataclass

from core.ids import NodeId


@dataclass(frozen=True, slots=True)
class PeerLink:
    """How one peer's pool is read now; `why` is the sentence of the log."""

    peer: NodeId
    transport: str
    why: str


@dataclass(frozen=True, slots=True)
class MovedKV:
    """What was read by one transport so far; numbers that only rise."""

    transport: str
    num_fetches: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TransferReport:
    """The peers that are read, and what was refused, failed or went another way: names with their counts, by name.

    `moved` is what was read, by transport.
    """

    links: tuple[PeerLink, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    moved: tuple[MovedKV, ...] = ()


NO_TRANSFERS = TransferReport()
"""Of a node that has not reported yet."""
