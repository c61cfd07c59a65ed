"""Incoming attempts: blocks promised to them, what of their KV is on the way, and what is here."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from core.commands import FetchKV
from core.events import AttemptEnd, Offered, PrefillDone, Sealed
from core.ids import AttemptId, NodeId
from core.kv import FetchTarget, KVHandle, num_blocks
from core.lifecycle import BlockState, DecodeState
from core.request import num_packed
from engine.blocks import BlockPool


@dataclass(slots=True)
class Incoming:
    """One attempt on its way in. `table` is ours; its first `num_shared` blocks were here already.

    `fetches` are the open ones, by number, with the table indices that each fills; `arrived` are proven indices.
    `num_lacking`: so many available blocks were too few; no use to try with less. `follows`: it waits for this one.
    """

    offer: Offered
    offered_at: float
    num_tokens: int
    state: DecodeState = DecodeState.WAITING
    parts: list[KVHandle] = field(default_factory=list)
    done: PrefillDone | None = None
    done_at: float = 0.0
    claimed_at: float = 0.0
    granted_at: float = 0.0
    table: tuple[int, ...] = ()
    num_shared: int = 0
    num_fetches: int = 0
    fetches: dict[int, tuple[int, ...]] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    arrived: set[int] = field(default_factory=set)
    num_lacking: int = -1
    follows: AttemptId | None = None
    end: AttemptEnd | None = None

    @property
    def id(self) -> AttemptId:
        """Its name."""
        return self.offer.attempt

    @property
    def owner(self) -> NodeId:
        """Who lends."""
        return self.offer.handle.owner

    @property
    def is_complete(self) -> bool:
        """Whether the prompt is done and all of its KV is here and proven."""
        return self.done is not None and len(self.arrived) + self.num_shared == len(self.table)


def incoming_of(offer: Offered, early: list[Sealed], now: float) -> Incoming:
    """A new one, with the parts that overtook its offer."""
    incoming = Incoming(offer, now, offer.request.prompt.num_tokens + num_packed(offer.log))
    add_part(incoming, offer.handle, offer.done, now)
    for sealed in early:
        add_part(incoming, sealed.handle, sealed.done, now)
    return incoming


def add_part(incoming: Incoming, handle: KVHandle, done: PrefillDone | None, now: float) -> None:
    """More sealed blocks, and with the last ones the end of the prompt."""
    incoming.parts.append(handle)
    if done is not None:
        incoming.done, incoming.done_at = done, now


def reserve(incoming: Incoming, pool: BlockPool, block_size: int) -> bool:
    """Promise all blocks of the prompt, those that are here already first; False, and nothing held, when full."""
    shared = pool.share(incoming.offer.request.prompt.block_keys)
    new = pool.allocate(num_blocks(incoming.num_tokens, block_size) - len(shared), BlockState.RESERVED)
    if new is None:
        pool.free(shared)
        return False
    incoming.table, incoming.num_shared = shared + new, len(shared)
    return True


def leader_for(incoming: Incoming, others: Iterable[Incoming], pool: BlockPool) -> AttemptId | None:
    """Another attempt whose fetch is to bring what this one lacks, as among choices of one prompt.

    Only one whose prompt is done, so that nothing but its fetch is waited for, and at least half of it is wanted.
    """
    keys = incoming.offer.request.prompt.block_keys
    num_here = pool.num_known(keys)
    wanted = set(keys[num_here:])
    for other in others if wanted else ():
        if other.state in (DecodeState.CLAIMING, DecodeState.FETCHING) and other.done is not None:
            num_common = len(wanted.intersection(other.offer.request.prompt.block_keys[other.num_shared :]))
            if num_common and 2 * num_common >= len(other.table) - other.num_shared:
                return other.id
    return None


def fetch_parts(incoming: Incoming, pool: BlockPool) -> list[FetchKV]:
    """Ask for all sealed blocks that are neither here nor on the way."""
    commands = []
    for part in incoming.parts:
        wanted = tuple(i for i in range(len(part.block_ids)) if part.first_block + i >= incoming.num_shared)
        if wanted:
            commands.append(_fetch(incoming, part.take(wanted), pool))
    incoming.parts.clear()
    return commands


def _fetch(incoming: Incoming, handle: KVHandle, pool: BlockPool) -> FetchKV:
    indices = tuple(range(handle.first_block, handle.end_block))
    blocks = tuple(incoming.table[index] for index in indices)
    pool.receive(blocks)
    number, incoming.num_fetches = incoming.num_fetches, incoming.num_fetches + 1
    incoming.fetches[number] = indices
    incoming.digests.update(zip(indices, handle.digests, strict=True))
    return FetchKV(incoming.id, number, handle, FetchTarget(blocks, pool.generations(blocks)))


def commit(incoming: Incoming, pool: BlockPool) -> None:
    """All is here and proven: the blocks may be read, and their content shared."""
    keys = incoming.offer.request.prompt.block_keys
    for index in range(incoming.num_shared, len(incoming.table)):
        pool.commit(incoming.table[index], incoming.digests[index], keys[index] if index < len(keys) else None)
    pool.adopt(incoming.table[: incoming.num_shared])
