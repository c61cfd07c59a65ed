"""Measured costs in the words of a node that preempts, and whether a table is of this node."""

from pathlib import Path

from cluster.live.config import NodeSettings
from core.errors import ConfigError
from decode_worker.config import PreemptionCosts
from engine.cost_table import CostTable, RecomputeCosts, TableFacts


def preemption_costs(costs: RecomputeCosts) -> PreemptionCosts:
    """What decides between recomputing a row and copying it out."""
    return PreemptionCosts(
        fixed_s=costs.fixed_s,
        prefill_s_per_token=costs.prefill_s_per_token,
        prefill_s_per_token_context=costs.prefill_s_per_token_context,
        copy_s_per_block=costs.copy_s_per_block,
    )


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
