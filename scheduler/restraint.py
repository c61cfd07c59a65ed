"""When a better layout may be taken: not for a little, not for a moment, and not back and forth."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.ids import NodeId
from scheduler.layouts import PlanNode, accepted

PREFILL_WEIGHT = {"prefill": 1.0, "mixed": 0.5}


@dataclass(frozen=True, slots=True)
class RestraintConfig:
    """A change must gain `min_gain` of the predicted goodput, and `change_cost` times the share of the nodes it
    touches, in `num_confirmations` plans in a row; or `small_gain` for `patience_s` on end; the first one `small_gain`
    only, for nobody has chosen what nodes begin with. It comes `hold_s` after the last one at the earliest.

    A change that takes something back, under a load like that of the last change, comes `reversal_hold_s` after it
    where it gains `min_gain`, earlier where it gains more; `again_factor` times later for each one of the last
    `memory_s`. For `settling_s` after the load stepped the first plan counts, and one change may take anything back. A
    change that rested on few requests may be taken back as well when `better_known` times as many have come.
    """

    min_gain: float = 0.05
    change_cost: float = 0.05
    small_gain: float = 0.02
    patience_s: float = 60.0
    num_confirmations: int = 2
    hold_s: float = 4.0
    reversal_hold_s: float = 300.0
    again_factor: float = 4.0
    memory_s: float = 600.0
    settling_s: float = 15.0
    better_known: float = 3.0


@dataclass(slots=True)
class Restraint:
    """Lets changes through or not.

    Owns: when the last change was, what it was, and since when another one seems better. `num_reversals` only rises.
    """

    config: RestraintConfig
    num_changes: int = 0
    num_reversals: int = 0
    _changed_at: float | None = None
    _num_known: int = 0
    _stepped_at: float = float("-inf")
    _direction: float = 0.0
    _roles_before: dict[NodeId, str] = field(default_factory=dict)
    _num_confirmed: int = 0
    _better_since: float | None = None
    _reversed_at: list[float] = field(default_factory=list)

    def step(self, now: float) -> None:
        """The load, or the nodes, are others than before."""
        self._stepped_at = now
        self._better_since, self._num_confirmed = None, 0

    def is_settling(self, now: float) -> bool:
        """Whether the load has just stepped."""
        return now < self._stepped_at + self.config.settling_s

    def may_change(
        self,
        changes: Mapping[PlanNode, str],
        share: float,
        gain: float,
        now: float,
        *,
        num_known: int,
        is_other_load: bool,
    ) -> bool:
        """Whether to take a layout that gains so much (a share) and changes nodes (a share of all) to other roles.

        The plan rests on `num_known` requests. `is_other_load`: what comes now is clearly not what the layout of now
        was chosen for.
        """
        config = self.config
        if gain < config.small_gain:
            self._num_confirmed, self._better_since = 0, None
            return False
        self._better_since = now if self._better_since is None else self._better_since
        is_chosen = self._changed_at is not None
        enough = gain >= (config.min_gain + config.change_cost * share if is_chosen else config.small_gain)
        self._num_confirmed = self._num_confirmed + 1 if enough else 0
        confirmed = self._num_confirmed >= (1 if self.is_settling(now) else config.num_confirmations)
        if not confirmed and now - self._better_since < config.patience_s:
            return False
        since_s = float("inf") if self._changed_at is None else now - self._changed_at
        is_first = self.is_settling(now) and (self._changed_at is None or self._changed_at < self._stepped_at)
        is_known = num_known >= config.better_known * self._num_known
        is_free = is_first or is_known or is_other_load or not self._is_reversal(changes)
        return since_s >= (config.hold_s if is_free else self._reversal_hold_s(gain, now))

    def _reversal_hold_s(self, gain: float, now: float) -> float:
        config = self.config
        recent = sum(now - at < config.memory_s for at in self._reversed_at)
        hold_s = config.reversal_hold_s * min(1.0, config.min_gain / gain) ** 2
        return max(config.hold_s, hold_s * config.again_factor**recent)

    def changed(self, changes: Mapping[PlanNode, str], now: float, *, num_known: int) -> None:
        """A layout was taken, by a plan that rests on so many requests."""
        self.num_changes += 1
        if self._is_reversal(changes):
            self.num_reversals += 1
            self._reversed_at = [at for at in self._reversed_at if now - at < self.config.memory_s] + [now]
        self._direction = _direction(changes) or self._direction
        self._roles_before |= {node.node: node.mix.role for node, role in changes.items() if role != node.mix.role}
        self._changed_at, self._num_known = now, num_known
        self._num_confirmed, self._better_since = 0, None

    def _is_reversal(self, changes: Mapping[PlanNode, str]) -> bool:
        """Takes a role back that a node had before its last change, or turns from more prefill to more decode."""
        returns = any(self._roles_before.get(n.node) == role != n.mix.role for n, role in changes.items())
        return returns or _direction(changes) * self._direction < 0.0


def _direction(changes: Mapping[PlanNode, str]) -> float:
    """Above 0 for more prefill, below for more decode."""
    return sum(PREFILL_WEIGHT.get(role, 0.0) - PREFILL_WEIGHT.get(n.mix.role, 0.0) for n, role in changes.items())


def changes_of(nodes: list[PlanNode], roles: list[tuple[str, int]]) -> dict[PlanNode, str]:
    """The nodes that would accept otherwise, and the role they would have."""
    return {node: key[0] for node, key in zip(nodes, roles, strict=True) if accepted(node.mix) != key}
