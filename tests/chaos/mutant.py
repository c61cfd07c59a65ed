"""What a mutant is: one rule broken, in the way in which it is broken in practice."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cluster.simulated.scenario import Scenario, draw

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A broken rule, and seeds of which at least one must notice.

    `draw` makes the scenario of a seed: by hand where those that chaos draws seldom come to what the rule is for.
    """

    break_rule: Callable[[Patch], None]
    seeds: tuple[int, ...]
    draw: Callable[[int], Scenario] = draw

    @property
    def name(self) -> str:
        """The rule that it breaks."""
        return self.break_rule.__name__
