"""Every metric that is served, once: the collector, the page about them, the board and the tests are made from it."""

from dataclasses import dataclass
from enum import StrEnum

from cluster.metrics.batch_rows import BATCHES
from cluster.metrics.efficiency_rows import EFFICIENCY
from cluster.metrics.kube_rows import KUBE
from cluster.metrics.node_rows import CONTROLLER, NODES
from cluster.metrics.request_rows import REQUESTS
from cluster.metrics.rows import Kind, Metric
from cluster.metrics.vllm_rows import VLLM


class Group(StrEnum):
    """Headings of the page."""

    REQUESTS = "Requests"
    BATCHES = "Batch files"
    NODES = "Nodes"
    CONTROLLER = "Controller"
    KUBE = "Kubernetes"
    EFFICIENCY = "Efficiency and cost"
    VLLM = "By vLLM's names"


@dataclass(frozen=True, slots=True)
class Section:
    """The metrics of one heading."""

    group: Group
    rows: tuple[Metric, ...]


SECTIONS = (
    Section(Group.REQUESTS, REQUESTS),
    Section(Group.BATCHES, BATCHES),
    Section(Group.NODES, NODES),
    Section(Group.CONTROLLER, CONTROLLER),
    Section(Group.KUBE, KUBE),
    Section(Group.EFFICIENCY, EFFICIENCY),
    Section(Group.VLLM, VLLM),
)

METRICS: dict[str, Metric] = {row.name: row for section in SECTIONS for row in section.rows}
"""By name."""

__all__ = ["METRICS", "SECTIONS", "Group", "Kind", "Metric", "Section"]
