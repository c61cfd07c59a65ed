"""Prompts for a workload that has lengths and prefixes only."""

from dataclasses import dataclass

import numpy as np

from cluster.workload.items import WorkItem

FIRST_TOKEN = 8
"""Lower ids are often special tokens."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of the right lengths: equal blocks of a workload are equal tokens, all else is drawn for its place."""

    seed: int
    vocab_size: int
    block_tokens: int

    def ids(self, place: int, item: WorkItem) -> list[int]:
        """The prompt of the item at this place of the workload."""
        if not item.block_ids:
            return self._drawn((self.seed, 1, place), item.prompt_tokens)
        ids = list[int]()
        for block in item.block_ids:
            ids += self._drawn((self.seed, 0, block), min(self.block_tokens, item.prompt_tokens - len(ids)))
        return ids

    def _drawn(self, key: tuple[int, ...], number: int) -> list[int]:
        first = min(FIRST_TOKEN, self.vocab_size - 1)
        drawn: list[int] = np.random.default_rng(key).integers(first, self.vocab_size, max(number, 0)).tolist()
        return drawn
