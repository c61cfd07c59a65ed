"""What a mutant is: one rule broken, in the way in which it is broken in practice."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A broken rule, and seeds of which at least one must notice."""

    break_rule: Callable[[Patch], None]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The rule that it breaks."""
        return self.break_rule.__name__
