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
class TransferReport:
    """The peers that are read, and what was refused, failed or went another way: names with their counts, by name."""

    links: tuple[PeerLink, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


NO_TRANSFERS = TransferReport()
"""Of a node that has not reported yet."""
