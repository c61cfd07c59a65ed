"""What a run of `penstock bench engine` found, before it is made into figures."""

from dataclasses import dataclass, field

from cluster.bench.engine_plan import EnginePlan
from cluster.bench.shapes import StepArithmetic

GAP = 1e-4
"""Two greedy answers may part where the reference's two best logits are closer than this: rounding decides there."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an arm's answer first parts from ours, and what the reference says of that place.

    `gap` is that between the reference's two best logits there, `ours_is_best` whether ours is the first of them.
    """

    arm: str
    streams: int
    repeat: int
    prompt: int
    place: int
    gap: float | None
    ours_is_best: bool

    @property
    def is_excused(self) -> bool:
        """Whether rounding explains it."""
        return self.gap is not None and self.gap < GAP


@dataclass(slots=True)
class Findings:
    """All that a run measured. Keys of `seconds` are (arm, streams), of `steps` names of steps, of `bars` of bars.

    `load_flop` is what each repeat's answers cost at least, by streams.
    """

    plan: EnginePlan
    work: StepArithmetic
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    answered: dict[int, list[int]] = field(default_factory=dict)
    load_flop: dict[int, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    bars: dict[str, list[float]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    num_compared: int = 0
    equal_int8: list[float] = field(default_factory=list)
    facts: dict[str, dict[str, object]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    kv_waste: float = 0.0
