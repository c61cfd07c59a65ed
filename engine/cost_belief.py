"""What a scheduler is told of a measured cost table: straight lines, a curve where they are wrong, and an overlap."""

from core.costs import NodeCosts, with_overlap, with_prefill_curve
from engine.cost_fit import fit
from engine.cost_table import CostTable, StepSample


def node_costs(table: CostTable) -> NodeCosts:
    """The straight lines closest to its steps of one kind, prompts or rows alone; the overlap of its mixed ones."""
    prefills = [each for each in table.steps if each.prefill_tokens and not each.rows]
    terms = [(1.0, float(n), n * (each.prefill_context + n / 2)) for each in prefills for n in (each.prefill_tokens,)]
    fixed, per_token, per_pair = fit(terms, [each.median_s for each in prefills])
    decodes = [each for each in table.steps if each.rows and not each.prefill_tokens]
    terms = [(1.0, float(each.rows), float(each.rows * each.context)) for each in decodes]
    decode, per_row, per_context = fit(terms, [each.median_s for each in decodes])
    costs = NodeCosts(fixed, decode, per_token, per_pair, per_row, per_context)
    alone = sorted((each.prefill_tokens, each.median_s) for each in prefills if not each.prefill_context)
    costs = with_prefill_curve(costs, alone)
    mixed = [each for each in (*table.steps, *table.checks) if each.rows and each.prefill_tokens]
    return with_overlap(costs, [_mixed(costs, each) for each in mixed])


def _mixed(costs: NodeCosts, step: StepSample) -> tuple[float, float, float]:
    """What grows with a step's prompt tokens, what grows with its rows, and what it took."""
    tokens = step.prefill_tokens
    pairs = tokens * (step.prefill_context + tokens / 2)
    prompts_s = costs.token_s(tokens + step.rows) * tokens + costs.per_prefill_pair_s * pairs
    rows_s = costs.per_row_s * step.rows + costs.per_row_context_s * step.rows * step.context
    return prompts_s, rows_s, step.median_s
