"""Decisions in words and numbers."""

from collections import Counter
from collections.abc import Mapping

from core.decisions import DecisionKind, Fact
from core.mix import Mix
from scheduler.closed_forms import Load
from scheduler.layouts import Option, PlanNode
from scheduler.plans import Goal


def kind_of_change(changes: Mapping[PlanNode, str]) -> DecisionKind:
    """RATIO where a node gets another role, BUDGET where only chunks change."""
    other = any(node.mix.role != role for node, role in changes.items())
    return DecisionKind.RATIO if other else DecisionKind.BUDGET


def shown(mixes: tuple[Mix, ...]) -> str:
    """Such as `3 prefill, 1 mixed (chunks of 256)`."""
    counts = Counter((mix.role, mix.prefill_tokens_per_step if mix.role == "mixed" else 0) for mix in mixes)
    words = (f"{num} {role}" + (f" (chunks of {chunk})" if chunk else "") for (role, chunk), num in counts.items())
    return ", ".join(words)


def sentence_of(before: Option, after: Option, changes: Mapping[PlanNode, str], is_stepped: bool) -> str:
    """Why one layout instead of another."""
    cause = "the load or the nodes have just changed" if is_stepped else "forecasts agree that it meets more"
    if kind_of_change(changes) is DecisionKind.BUDGET:
        return f"other chunks, {shown(after.mixes)} instead of {shown(before.mixes)}: {cause}"
    return f"{shown(after.mixes)} instead of {shown(before.mixes)}: {cause}"


def facts_of(load: Load, goal: Goal, before: Option, after: Option) -> tuple[Fact, ...]:
    """The numbers: load as it is planned for, promises, and what is forecast."""
    return (
        Fact("planned_rps", load.rate_rps),
        Fact("prompt_tokens", load.mean_prompt),
        Fact("output_tokens", load.mean_output),
        Fact("hit_share", load.hit_share),
        Fact("ttft_slo_s", goal.slo.ttft_s),
        Fact("tpot_slo_s", goal.slo.tpot_s),
        Fact("attainment_before", before.forecast.attainment),
        Fact("attainment_after", after.forecast.attainment),
    )
