"""The simulator's costs from a table that was measured on a machine."""

from cluster.simulated.costs import StepCosts
from engine.cost_table import CostTable


def step_costs(table: CostTable) -> StepCosts:
    """The straight costs closest to all steps of the table."""
    linear = table.linear()
    return StepCosts(linear.fixed_s, linear.per_token_s, linear.per_context_s)
