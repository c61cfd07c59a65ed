"""Which node is believed to hold the KV of which prompt prefixes. Bounded, and cheap to ask."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from core.ids import NodeId

GRANULARITY_TOKENS = 128
"""Prefixes are told apart in steps of about so many tokens: shorter ones are found by the node, not by the route."""

NONE_HELD = (0, 0)


def stride_of(block_size: int) -> int:
    """Of a prompt's block keys, every so many-th is looked at."""
    return max(1, GRANULARITY_TOKENS // block_size)


def strided(block_keys: Sequence[bytes], block_size: int) -> tuple[bytes, ...]:
    """The keys that name the prompt's prefixes here; key i covers `(i + 1) * stride` blocks."""
    stride = stride_of(block_size)
    return tuple(block_keys[stride - 1 :: stride])


class PrefixIndex:
    """Key -> nodes, as a bit mask of nodes.

    Owns: a bounded, least recently used set of keys for each node, and its bit. A key covers all tokens before it, so
    who holds one holds those before it: deeper keys are forgotten first, and the deepest one is found by halving.
    What it says is a belief: nodes evict by their own order.
    """

    def __init__(self) -> None:
        self._masks: dict[bytes, int] = {}
        self._held: dict[NodeId, OrderedDict[bytes, None]] = {}
        self._bits: dict[NodeId, int] = {}
        self._capacity: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def join(self, node: NodeId, capacity: int) -> int:
        """A node that may hold so many keys; its bit."""
        used = set(self._bits.values())
        bit = next(1 << i for i in range(len(used) + 1) if 1 << i not in used)
        self._bits[node], self._held[node], self._capacity[node] = bit, OrderedDict(), max(1, capacity)
        return bit

    def lose(self, node: NodeId) -> None:
        """A node is gone with all it held."""
        for key in self._held.pop(node):
            self._clear(key, self._bits[node])
        del self._bits[node], self._capacity[node]

    def empty(self, node: NodeId) -> None:
        """A node holds nothing any more; what is computed there from now on it will hold again."""
        for key in self._held[node]:
            self._clear(key, self._bits[node])
        self._held[node].clear()

    def add(self, node: NodeId, keys: Sequence[bytes]) -> None:
        """A node holds these prefixes, or will have computed them before anybody could ask."""
        held, bit, masks = self._held[node], self._bits[node], self._masks
        for key in reversed(keys):
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                masks[key] = masks.get(key, 0) | bit
        while len(held) > self._capacity[node]:
            key, _ = held.popitem(last=False)
            self._clear(key, bit)

    def forget(self, node: NodeId, keys: Iterable[bytes]) -> None:
        """A node turned out not to hold these."""
        held = self._held.get(node)
        if held is None:
            return
        for key in keys:
            if key in held:
                del held[key]
                self._clear(key, self._bits[node])

    def deepest(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """How many of the keys the node with the most of them holds, and the mask of the nodes that hold so many."""
        masks = self._masks
        if not keys or keys[0] not in masks:
            return NONE_HELD
        low, high = 1, len(keys)
        while low < high:
            middle = (low + high + 1) >> 1
            if keys[middle - 1] in masks:
                low = middle
            else:
                high = middle - 1
        return low, masks[keys[low - 1]]

    def depth(self, keys: Sequence[bytes], bit: int, most: int) -> int:
        """How many of the first `most` keys the node of this bit holds."""
        masks = self._masks
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) >> 1
            if masks.get(keys[middle - 1], 0) & bit:
                low = middle
            else:
                high = middle - 1
        return low

    def check(self) -> None:
        """Asserts that masks and sets agree, and that no node holds more than it may."""
        masks: dict[bytes, int] = {}
        for node, held in self._held.items():
            assert len(held) <= self._capacity[node], f"{node} is believed to hold {len(held)} prefixes"
            for key in held:
                masks[key] = masks.get(key, 0) | self._bits[node]
        assert masks == self._masks, "who holds which prefix"

    def _clear(self, key: bytes, bit: int) -> None:
        mask = self._masks[key] & ~bit
        if mask:
            self._masks[key] = mask
        else:
            del self._masks[key]
