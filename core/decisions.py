"""What was decided about the nodes, why, and what the operator says to it."""

from dataclasses import dataclass
from enum import StrEnum

from core.ids import NodeId
from core.mix import Mix


class DecisionKind(StrEnum):
    """What a decision is about. `feasible` ends what `infeasible` began; `advice` was not carried out."""

    RATIO = "ratio"
    BUDGET = "budget"
    CAPACITY = "capacity"
    INFEASIBLE = "infeasible"
    FEASIBLE = "feasible"
    OVERRIDE = "override"
    ADVICE = "advice"


@dataclass(frozen=True, slots=True)
class MixStep:
    """One node's part of a decision. Epochs mean nothing here."""

    node: NodeId
    was: Mix
    becomes: Mix

    def __str__(self) -> str:
        return f"{self.node} {_shown(self.was)} -> {_shown(self.becomes)}"


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that a decision rests on; units stand last in its name."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision as a record: when (the scheduler's clock), what changes, why in words, and on which numbers.

    Goodput is predicted, in requests per second, for the load that is planned for: before is the mix that stays
    without the decision.
    """

    at: float
    kind: DecisionKind
    reason: str
    steps: tuple[MixStep, ...] = ()
    facts: tuple[Fact, ...] = ()
    goodput_before_rps: float = 0.0
    goodput_after_rps: float = 0.0

    def fact(self, name: str) -> float | None:
        """One number by its name; None where the decision does not rest on it."""
        return next((fact.value for fact in self.facts if fact.name == name), None)

    def __str__(self) -> str:
        steps = "; ".join(str(step) for step in self.steps)
        numbers = ", ".join(f"{fact.name} {fact.value:.4g}" for fact in self.facts)
        goodput = f"goodput {self.goodput_before_rps:.3g} -> {self.goodput_after_rps:.3g} req/s"
        return f"{self.kind}: {self.reason}" + (f" [{steps}]" if steps else "") + f" ({goodput}; {numbers})"


@dataclass(frozen=True, slots=True)
class Decided:
    """To the operator: a decision was made."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class CapacityTarget:
    """To the operator: how many nodes there should be. Those in `remove` should go: drain them, then stop them."""

    num_nodes: int
    remove: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class OverrideLifted:
    """The operator gives nodes back to the controller; none named: all."""

    nodes: tuple[NodeId, ...] = ()


def _shown(mix: Mix) -> str:
    return f"{mix.role}/{mix.prefill_tokens_per_step}" if mix.accepts_prefill else mix.role
