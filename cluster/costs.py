"""Measured costs in the words of a node that preempts, and of a scheduler that predicts."""

from pathlib import Path

from cluster.live.config import NodeSettings
from core.costs import NodeCosts, with_overlap, with_prefill_curve
from core.errors import ConfigError
from decode_worker.config import PreemptionCosts
from engine.cost_fit import fit
from engine.cost_table import CostTable, RecomputeCosts, StepSample, TableFacts


def preemption_costs(costs: RecomputeCosts) -> PreemptionCosts:
    """What decides between recomputing a row and copying it out."""
    return PreemptionCosts(
        fixed_s=costs.fixed_s,
        prefill_s_per_token=costs.prefill_s_per_token,
        prefill_s_per_token_context=costs.prefill_s_per_token_context,
        copy_s_per_block=costs.copy_s_per_block,
    )


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
    prompts_s = costs.token_s(tokens) * tokens + costs.per_prefill_pair_s * pairs
    rows_s = costs.per_row_s * step.rows + costs.per_row_context_s * step.rows * step.context
    return prompts_s, rows_s, step.median_s


def read_table(path: Path, node: NodeSettings, digest: str) -> CostTable:
    """The table of a file, for nodes of these settings. Raises ConfigError where it was made for others."""
    table = CostTable.read(path)
    problems = [f"--cost-table {path} was measured with {why}" for why in _misfits(table.facts, node, digest)]
    if problems:
        raise ConfigError(problems)
    return table


def _misfits(facts: TableFacts, node: NodeSettings, digest: str) -> list[str]:
    if facts.digest != digest:
        return [f"the model {facts.model}, whose weights are not those of {node.model}"]
    columns = (
        ("--dtype", facts.dtype, node.dtype),
        ("--device", facts.device, node.device),
        ("--block-size", facts.block_size, node.block_size),
        ("--num-threads", facts.num_threads, node.num_threads),
    )
    return [f"{name} {measured}, not {own}" for name, measured, own in columns if measured != own]
