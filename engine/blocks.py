"""The ids of a node's KV blocks: who holds them, in which generation, and what content can be shared. Pure."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import fields

from core.lifecycle import BlockState
from core.stats import BlockCounts

_SHAREABLE = frozenset({BlockState.CACHED, BlockState.SEALED, BlockState.IN_USE})
_COUNTED = tuple(BlockState(field.name) for field in fields(BlockCounts)[1:])
_HELD_EMPTY = frozenset({BlockState.FREE, BlockState.CACHED})


class BlockPool:
    """Hands out block ids of one node; its two machines share it.

    Owns: state, reference count, generation, digest and content key of every block.
    Invariant: references are 0 exactly in FREE and CACHED; a block that may still be written by a step or a fetch is
    held (FILLING, RECEIVING or QUARANTINED) by the attempt that started it, so nobody else can get it. A content key
    names tokens from the beginning of its block on, all of a full block or the tail of a prompt; whatever else is
    written into the block comes behind them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._state = [BlockState.FREE] * num_blocks
        self._refs = [0] * num_blocks
        self._generation = [0] * num_blocks
        self._digest: list[bytes] = [b""] * num_blocks
        self._key: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._held: Counter[int] = Counter()
        self._count = dict.fromkeys(BlockState, 0)
        self._count[BlockState.FREE] = num_blocks

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now: free ones, and cached ones that it may evict."""
        return len(self._free) + len(self._cached)

    @property
    def num_held(self) -> int:
        """References of `hold`: they come back with a step that runs, and no table accounts for them."""
        return self._held.total()

    def num_known(self, keys: Sequence[bytes]) -> int:
        """How many blocks `share` would find; takes none."""
        return next((i for i, key in enumerate(keys) if self._find(key) is None), len(keys))

    def generations(self, blocks: Iterable[int]) -> tuple[int, ...]:
        """The present generation of each block."""
        return tuple(map(self._generation.__getitem__, blocks))

    def digests(self, blocks: Iterable[int]) -> tuple[bytes, ...]:
        """The digest of each block, as it was sealed."""
        return tuple(self._digest[block] for block in blocks)

    def state(self, block: int) -> BlockState:
        """The state of one block."""
        return self._state[block]

    def counts(self) -> BlockCounts:
        """All blocks by state."""
        return BlockCounts(self.num_blocks, *[self._count[state] for state in _COUNTED])

    # ── getting and giving back ──────────────────────────────────────────────────────────────────────────────────────

    def allocate(self, number: int, state: BlockState) -> tuple[int, ...] | None:
        """`number` blocks of a new generation, in FILLING, RESERVED or IN_USE; None, and nothing changed, when full."""
        if number > self.num_available:
            return None
        taken = self._taken(number)
        self._move_all(taken, state)
        for block in taken:
            self._refs[block] = 1
            self._generation[block] += 1
        return tuple(taken)

    def share(self, keys: Sequence[bytes]) -> tuple[int, ...]:
        """The longest run of blocks with these content keys from the first on; each gets one more reference."""
        found = []
        for key in keys:
            block = self._find(key)
            if block is None:
                break
            if self._state[block] is BlockState.CACHED:
                del self._cached[block]
                self._move(block, BlockState.SEALED)
            self._refs[block] += 1
            found.append(block)
        return tuple(found)

    def hold(self, key: bytes) -> tuple[int, ...]:
        """The block with this content key, to be copied from by the next step; empty where it is not here.

        Until `let_go` it has one more reference: nobody gets it, whoever else gives it back.
        """
        block = self.share((key,))
        self._held.update(block)
        return block

    def let_go(self, blocks: Iterable[int]) -> None:
        """The step that copied from them is over."""
        for block in blocks:
            assert self._held[block] > 0, f"block {block} is let go and was not held"
            self._held[block] -= 1
            self.free((block,))

    def free(self, blocks: Iterable[int]) -> None:
        """Give back one reference to each; without owners a block is cached if its content has a key, else free.

        Legal only when no step and no fetch of this owner can touch them any more. `blocks` are in table order: the end
        of a prefix is evicted before its beginning, without which the rest could not be found.
        """
        refs, known = self._refs, self._key
        cached: list[int] = []
        free: list[int] = []
        for block in reversed(tuple(blocks)):
            assert refs[block] > 0, f"block {block} is freed without an owner"
            refs[block] -= 1
            if refs[block] == 0:
                (cached if block in known else free).append(block)
        self._move_all(cached, BlockState.CACHED)
        self._cached.update(dict.fromkeys(cached))
        self._move_all(free, BlockState.FREE)
        self._free += free

    def flush(self) -> int:
        """Forget the content of all cached blocks, which are free then; how many there were. Nobody has any of them."""
        flushed = list(self._cached)
        self._cached.clear()
        for block in flushed:
            self._forget(block)
        self._move_all(flushed, BlockState.FREE)
        self._free += flushed
        return len(flushed)

    # ── what becomes of a block while it is held ─────────────────────────────────────────────────────────────────────

    def seal(self, block: int, digest: bytes, key: bytes | None) -> None:
        """The block is complete: its bytes will not change until it is freed. With a key, its content can be shared."""
        assert self._state[block] is BlockState.FILLING, f"block {block} is sealed in {self._state[block]}"
        self._move(block, BlockState.SEALED)
        self._publish(block, digest, key)

    def reseal(self, block: int, digest: bytes) -> None:
        """A row that decoded leaves: its block is complete as it stands, and stays so until it is adopted or freed."""
        assert self._state[block] in (BlockState.IN_USE, BlockState.SEALED), f"{block} is {self._state[block]}"
        self._move(block, BlockState.SEALED)
        self._digest[block] = digest

    def receive(self, blocks: Iterable[int]) -> None:
        """A fetch may write these from now on."""
        received = tuple(blocks)
        for block in received:
            assert self._state[block] is BlockState.RESERVED, f"block {block} receives in {self._state[block]}"
        self._move_all(received, BlockState.RECEIVING)

    def commit(self, block: int, digest: bytes, key: bytes | None) -> None:
        """The fetched bytes are proven: the block may be read."""
        assert self._state[block] is BlockState.RECEIVING, f"block {block} is committed in {self._state[block]}"
        self._move(block, BlockState.IN_USE)
        self._publish(block, digest, key)

    def adopt(self, blocks: Iterable[int]) -> None:
        """Prefilled here, decoded here."""
        for block in blocks:
            if self._state[block] in (BlockState.FILLING, BlockState.SEALED):
                self._move(block, BlockState.IN_USE)

    def publish(self, block: int, key: bytes) -> None:
        """The block's first tokens, which `key` names, are final, though more may be written behind them."""
        assert self._state[block] in (BlockState.IN_USE, BlockState.SEALED), f"{block} is {self._state[block]}"
        self._name(block, key)

    def unpublish(self, blocks: Iterable[int]) -> None:
        """Their content is in doubt: who holds them keeps them, and nobody else finds them."""
        for block in blocks:
            assert self._refs[block] > 0, f"block {block} is unpublished without an owner"
            self._forget(block)

    def quarantine(self, blocks: Iterable[int]) -> None:
        """Their attempt is over, and a step or a fetch may still touch them; shared ones stay as they are."""
        for block in blocks:
            if self._refs[block] == 1:
                if self._state[block] in (BlockState.FILLING, BlockState.RECEIVING, BlockState.RESERVED):
                    self._forget(block)
                self._move(block, BlockState.QUARANTINED)

    def check(self) -> None:
        """Asserts the invariants over all blocks."""
        for block, state in enumerate(self._state):
            assert (self._refs[block] == 0) == (state in _HELD_EMPTY), f"block {block}: {self._refs[block]} in {state}"
            assert (state is BlockState.CACHED) == (block in self._cached), f"block {block} in {state}"
        assert sorted(self._free) == [b for b, s in enumerate(self._state) if s is BlockState.FREE], "free list"
        for state in BlockState:
            assert self._count[state] == self._state.count(state), f"count of {state}"
        assert self._by_key == {key: block for block, key in self._key.items()}, "content keys"
        for block in self._key:
            state = self._state[block]
            assert state in _SHAREABLE or state is BlockState.QUARANTINED, f"block {block} is found and is {state}"
        for block, number in self._held.items():
            assert 0 <= number <= self._refs[block], f"block {block} is held {number} times of {self._refs[block]}"

    def num_references(self) -> int:
        """All references together; its owners' tables must add up to this."""
        return sum(self._refs)

    def _taken(self, number: int) -> list[int]:
        """So many blocks: the last freed first, then the cached ones that were not used for longest."""
        rest = max(0, len(self._free) - number)
        taken = self._free[rest:][::-1]
        del self._free[rest:]
        while len(taken) < number:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            taken.append(block)
        return taken

    def _publish(self, block: int, digest: bytes, key: bytes | None) -> None:
        self._digest[block] = digest
        if key is not None:
            self._name(block, key)

    def _find(self, key: bytes) -> int | None:
        block = self._by_key.get(key)
        return block if block is not None and self._state[block] in _SHAREABLE else None

    def _name(self, block: int, key: bytes) -> None:
        """The first block with some content keeps its key, and a block its first key."""
        if key not in self._by_key and block not in self._key:
            self._by_key[key] = block
            self._key[block] = key

    def _forget(self, block: int) -> None:
        key = self._key.pop(block, None)
        if key is not None:
            del self._by_key[key]

    def _move_all(self, blocks: Sequence[int], state: BlockState) -> None:
        states, count = self._state, self._count
        for block in blocks:
            count[states[block]] -= 1
            states[block] = state
        count[state] += len(blocks)

    def _move(self, block: int, state: BlockState) -> None:
        self._count[self._state[block]] -= 1
        self._count[state] += 1
        self._state[block] = state
