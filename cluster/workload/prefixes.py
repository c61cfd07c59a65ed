"""Which prompts begin alike: conversations that go on after others have come between."""

from dataclasses import dataclass
from random import Random

from cluster.workload.items import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Conversations:
    """A share `continues` of all prompts goes on from an earlier one, about `distance` requests before (exponential).

    `shared` of such a prompt's blocks are those of the earlier one, as far as that is long enough. Every prompt begins
    with the same block.
    """

    continues: float
    shared: float
    distance: float


class PrefixWriter:
    """Names the blocks of one prompt after the other. Owns: the prompts that may be gone on from."""

    def __init__(self, prefixes: Conversations, chance: Random) -> None:
        self._prefixes = prefixes
        self._chance = chance
        self._earlier: list[tuple[int, ...]] = []
        self._next_id = 1

    def block_ids(self, prompt_tokens: int) -> tuple[int, ...]:
        """The blocks of the next prompt."""
        num_blocks = -(-prompt_tokens // BLOCK_TOKENS)
        ids = [0, *self._gone_on_from(num_blocks)]
        num_new = num_blocks - len(ids)
        ids += range(self._next_id, self._next_id + num_new)
        self._next_id += max(0, num_new)
        self._earlier.append(tuple(ids))
        return self._earlier[-1]

    def _gone_on_from(self, num_blocks: int) -> tuple[int, ...]:
        """Blocks after the first that an earlier prompt has too: the longest such of a few that are about as old."""
        if not self._earlier or self._chance.random() >= self._prefixes.continues:
            return ()
        wanted = min(num_blocks - 1, round(num_blocks * self._prefixes.shared))
        found: tuple[int, ...] = ()
        for _ in range(8):
            back = 1 + int(self._chance.expovariate(1 / self._prefixes.distance))
            found = max(found, self._earlier[-min(back, len(self._earlier))][1 : wanted + 1], key=len)
            if len(found) == wanted:
                break
        return found
