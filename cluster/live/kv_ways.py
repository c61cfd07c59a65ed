"""What is said at the start of how KV moves: by which transport between whom, and why."""

import asyncio
import time
from collections.abc import Callable, Sequence

from cluster.live.head import NodeState
from core.ids import node_name

MAX_NAMED_PAIRS = 6
LOOK_EVERY_S = 0.05


def ways_sentences(nodes: Sequence[NodeState]) -> list[str]:
    """One sentence for each transport and reason; pairs of one are named where they are few."""
    pairs: dict[str, set[tuple[str, ...]]] = {}
    for node in nodes:
        for link in node.transfers.links:
            pairs.setdefault(link.why, set()).add(tuple(sorted((node.slot, node_name(link.peer)))))
    return [f"KV moves by {why}: {_named(found)}" for why, found in sorted(pairs.items())]


async def settled_ways(nodes: Callable[[], Sequence[NodeState]], limit_s: float) -> list[str]:
    """The sentences once every node reads every other, or what is known of them when that takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and not _all_read_all(nodes()):
        await asyncio.sleep(LOOK_EVERY_S)
    return ways_sentences(nodes())


def _all_read_all(nodes: Sequence[NodeState]) -> bool:
    return all(len(node.transfers.links) >= len(nodes) - 1 for node in nodes)


def _named(pairs: set[tuple[str, ...]]) -> str:
    if len(pairs) > MAX_NAMED_PAIRS:
        return f"{len(pairs)} pairs of nodes"
    return "; ".join(" and ".join(pair) for pair in sorted(pairs))
