"""What need not be computed: blocks that are here already, and those that another attempt is computing."""

from collections.abc import Iterable, Mapping
from itertools import takewhile

from core.kv import num_blocks
from core.lifecycle import BlockState, PrefillState
from engine.blocks import BlockPool
from prefill_worker.attempt import Awaited, Prefill, key_of_block


def allocate(prefill: Prefill, pool: BlockPool, block_size: int) -> bool:
    """Get all blocks of the prompt, cached ones first; False, and nothing held, when they are not all there.

    Where all full blocks are found, so may be the first tokens of the next: that block is held, to be copied from. The
    pool has no room set aside for it, so it is let go where its place is needed.
    """
    if pool.num_available <= prefill.num_lacking:
        return False
    findable = prefill.findable
    shared = pool.share(findable.keys)
    source = pool.hold(findable.tail) if len(shared) == len(findable.keys) else ()
    number = num_blocks(prefill.num_tokens, block_size) - len(shared)
    new = pool.allocate(number, BlockState.FILLING)
    if new is None and source:
        pool.let_go(source)
        source, new = (), pool.allocate(number, BlockState.FILLING)
    if new is None:
        pool.free(shared)
        prefill.num_lacking = pool.num_available
        return False
    prefill.table, prefill.source, prefill.awaited = shared + new, source, None
    prefill.num_sealed = prefill.num_to_seal = len(shared)
    prefill.num_cached = findable.num_tokens(len(shared) + len(source), block_size)
    prefill.num_computed = prefill.num_planned = prefill.num_cached
    return True


def waits(prefill: Prefill, others: Iterable[Prefill], pool: BlockPool, block_size: int) -> bool:
    """Whether one of `others` computes the first block that a queued attempt lacks: what two want is computed once.

    Only what runs is waited for, and what runs comes to an end, for it comes to the front of the line; so a wait ends,
    and nobody who has not begun waits for anybody who has not.
    """
    if prefill.awaited is None or not _is_coming(prefill.awaited):
        prefill.awaited = _next_awaited(prefill, others, pool, block_size)
    return prefill.awaited is not None


def _is_coming(awaited: Awaited) -> bool:
    by = awaited.by
    is_running = by.state is PrefillState.PREFILLING and by.end is None and not by.is_done
    return is_running and by.num_sealed < awaited.num_blocks


def _next_awaited(prefill: Prefill, others: Iterable[Prefill], pool: BlockPool, block_size: int) -> Awaited | None:
    names = prefill.findable.names
    index = pool.num_known(names)
    if index == len(names):
        return None
    for other in others:
        prompt = other.asked.request.prompt
        if other.num_sealed <= index and key_of_block(prompt, index, block_size) == names[index]:
            same = (key_of_block(prompt, i, block_size) == names[i] for i in range(index + 1, len(names)))
            awaited = Awaited(other, index + 1 + sum(takewhile(bool, same)))
            if _is_coming(awaited):
                return awaited
    return None


def seal(
    prefill: Prefill, blocks: tuple[int, ...], digests: Mapping[int, bytes], pool: BlockPool, block_size: int
) -> None:
    """A step has completed these blocks, the next ones of the table: others may read and find them."""
    prompt = prefill.asked.request.prompt
    for index, block in enumerate(blocks, prefill.num_sealed):
        pool.seal(block, digests[block], key_of_block(prompt, index, block_size))
    prefill.num_sealed += len(blocks)


def publish_tail(prefill: Prefill, pool: BlockPool, block_size: int) -> None:
    """The prompt is done; a last block that a decode row of this node will fill up can be copied from all the same."""
    key = key_of_block(prefill.asked.request.prompt, prefill.num_sealed, block_size)
    for block in prefill.table[prefill.num_sealed :]:
        pool.adopt((block,))
        if key is not None:
            pool.publish(block, key)
