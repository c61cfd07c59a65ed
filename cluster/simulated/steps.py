"""The steps of one simulated node: generations at their start, bytes at some moment of them, results at their end."""

from collections import deque
from typing import TYPE_CHECKING

from cluster.simulated.scenario import Fault
from cluster.simulated.watch import Deed
from core.errors import StepFailed as StepFailedError
from core.events import StepDone, StepFailed
from core.ids import AttemptId
from core.lifecycle import DecodeState
from core.step import StepPlan, StepResult
from engine.fake import FakeExecutor

if TYPE_CHECKING:
    from cluster.simulated.host import Host, Place


COPYING_WEIGHT = 8.0
"""Steps that copy rows out or back are rare: they fail so much more often."""


class Steps:
    """Runs plans in the order asked, one after the other.

    Owns: the executor, the plans that wait or run, and who was forgotten with a step that failed.
    Invariant: results come in the order asked.
    """

    def __init__(self, host: "Host", place: "Place") -> None:
        self._host = host
        self._place = place
        self._loop = place.loop
        self._executor = FakeExecutor(host.memory)
        self._plans: deque[StepPlan] = deque()
        self._forgotten: set[AttemptId] = set()
        self._told_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no step waits or runs."""
        return not self._plans

    def clear(self) -> None:
        """The process is gone."""
        self._plans.clear()

    def ask(self, plan: StepPlan) -> None:
        """Run this when those before it are over."""
        self._check(plan)
        self._plans.append(plan)
        self._host.lives.steps[plan.step] = (*rows_of(plan), *self._sealed_by(plan))
        if len(self._plans) == 1:
            self._begin()

    def _sealed_by(self, plan: StepPlan) -> tuple[AttemptId, ...]:
        """Rows that may leave when the step is over; a plan names only their blocks."""
        decode, in_plan = self._host.machine.decode, rows_of(plan)
        leaving = [at for at in decode.attempts if decode.state_of(at) is DecodeState.LEAVING] if plan.seal else []
        return tuple(attempt for attempt in leaving if attempt not in in_plan)

    def _check(self, plan: StepPlan) -> None:
        """A row behind drafts stands nobody knows where, and one that is saved must not be in a step."""
        node = self._host.node
        assert len(set(rows_of(plan))) == len(rows_of(plan)), f"{node}: step {plan.step} names a row twice"
        for before in self._plans:
            guessing = {at for at, most in zip(before.attempts, before.max_drafts, strict=False) if most}
            assert guessing.isdisjoint(plan.attempts), f"{node}: step {plan.step} runs on behind drafts"
            assert set(rows_of(before)).isdisjoint(plan.saved), f"{node}: step {plan.step} saves what still runs"

    def _begin(self) -> None:
        plan, chance = self._plans[0], self._loop.chance
        context = self._executor.context_tokens(plan)
        try:
            self._executor.begin(plan)
        except StepFailedError as error:
            self._loop.after(self._place.soon_s(), self._end_broken, plan, str(error))
            return
        num_lines = sum(plan.num_tokens) + sum(plan.max_drafts)
        duration_s = self._place.long_s(self._place.costs.step.step_s(num_lines, context))
        torn = chance.randint(0, len(plan.attempts)) if chance.random() < 0.3 else 0
        if torn:
            self._loop.after(duration_s * chance.random(), self._advance, plan, 0, torn)
        self._loop.after(duration_s, self._end, plan, torn, duration_s)

    def _advance(self, plan: StepPlan, start: int, end: int) -> None:
        if not self._host.is_dead:
            for attempt, num_tokens in zip(plan.attempts[start:end], plan.num_tokens[start:end], strict=True):
                self._executor.advance(attempt, num_tokens)

    def _end(self, plan: StepPlan, torn: int, duration_s: float) -> None:
        if self._host.is_dead:
            return
        if self._loop.now < self._host.paused_until:
            self._loop.at(self._host.paused_until, self._end, plan, torn, duration_s)
            return
        self._advance(plan, torn, len(plan.attempts))
        weight = COPYING_WEIGHT if plan.saved or plan.restored else 1.0
        if self._loop.chance.random() < self._place.dice.step_fails * weight:
            self._place.watch.happened(Fault.STEP_FAILED)
            self._forgotten.update(rows_of(plan))
            self._end_broken(plan, "the executor broke down")
            return
        result = self._executor.finish(plan, duration_s, self._failing())
        self._note(plan, result)
        self._next(StepDone(result))

    def _failing(self) -> list[AttemptId]:
        """Rows whose logits are not finite."""
        row_fails = self._place.dice.row_fails
        if not row_fails:
            return []
        failing = [attempt for attempt in self._executor.sampled if self._loop.chance.random() < row_fails]
        for _ in failing:
            self._place.watch.happened(Fault.ROW_FAILED)
        return failing

    def _note(self, plan: StepPlan, result: StepResult) -> None:
        watch, most = self._place.watch, self._host.machine.config.max_saved_blocks
        num_saved = self._executor.num_saved_blocks
        assert num_saved <= most, f"{self._host.node}: {num_saved} blocks in host memory, {most} may be"
        watch.happened(Deed.SAVED, len(plan.saved))
        watch.happened(Deed.RESTORED, len(plan.restored))
        watch.happened(Deed.COPIED, sum(join.copied_from is not None for join in plan.joined))
        watch.happened(Deed.DRAFTED, sum(result.num_drafts))
        watch.happened(Deed.ACCEPTED, len(result.attempts) - len(set(result.attempts)))

    def _end_broken(self, plan: StepPlan, why: str) -> None:
        if self._host.is_dead:
            return
        known = self._forgotten.intersection(rows_of(plan))
        assert known or not rows_of(plan), f"{self._host.node}: step {plan.step} could not be run: {why}"
        self._forgotten.update(rows_of(plan))
        self._executor.forget(plan)
        self._next(StepFailed(plan.step, why))

    def _next(self, event: StepDone | StepFailed) -> None:
        self._plans.popleft()
        self._told_at = max(self._told_at, self._loop.now + self._place.soon_s())
        self._loop.at(self._told_at, self._host.take, event)
        if self._plans:
            self._begin()


def rows_of(plan: StepPlan) -> tuple[AttemptId, ...]:
    """All rows that a step touches, each once."""
    only_restored = (growth.attempt for growth in plan.restored if growth.attempt not in plan.attempts)
    return (*plan.attempts, *plan.saved, *only_restored)
