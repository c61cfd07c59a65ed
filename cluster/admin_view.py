"""The cluster on a terminal: what `penstock status` prints and `penstock top` keeps up to date."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.api.v1 import admin_pb2, inference_pb2

NUM_DECISIONS = 5
BAR_CELLS = 16
_STYLES = {"prefill": "dark_orange", "decode": "dodger_blue1", "mixed": "green", "closed": "dim"}


def cluster_view(answer: admin_pb2.AdminServiceGetClusterResponse) -> RenderableType:
    """Everything at a glance."""
    return Group(_head(answer), _slots(answer), *_decisions(answer.cluster.decisions))


def _head(answer: admin_pb2.AdminServiceGetClusterResponse) -> Text:
    cluster = answer.cluster
    state = "draining" if cluster.draining else "serving" if cluster.serving else "not serving"
    counted = [it for it in cluster.requests if it.HasField("met")]
    met = sum(it.met for it in counted)
    share = f"{met} of the last {len(counted)} requests with an SLO met it" if counted else "no request had an SLO yet"
    return Text(f"{cluster.model.name}: {state}; {_ratio(cluster.nodes)}; controller {answer.controller}; {share}")


def _ratio(nodes: Iterable[inference_pb2.Node]) -> str:
    roles = [node.role for node in nodes]
    counts = [f"{roles.count(role)} {role}" for role in _STYLES if role in roles]
    return ", ".join(counts) or "no nodes"


def _slots(answer: admin_pb2.AdminServiceGetClusterResponse) -> Table:
    nodes = {node.id: node for node in answer.cluster.nodes}
    table = Table("node", "state", "role", "set by", "rows", "queued", "leases", "KV blocks", "steps", "deaths")
    for column in ("rows", "queued", "leases", "steps", "deaths"):
        next(each for each in table.columns if each.header == column).justify = "right"
    for slot in answer.slots:
        node = nodes.get(slot.node, inference_pb2.Node(role="-"))
        by = "drain" if slot.drained else "hand" if slot.overridden else "controller"
        table.add_row(
            slot.name,
            slot.state,
            Text(node.role, style=_STYLES.get(node.role, "")),
            by if answer.controller == "on" or by != "controller" else "layout",
            str(node.running_rows),
            str(node.queued_tokens),
            str(node.leases),
            _blocks(node.blocks),
            str(node.num_steps),
            str(slot.num_deaths),
        )
    return table


def _blocks(blocks: inference_pb2.Blocks) -> Text:
    """A bar: in use `█`, cached `▒`, free `·`."""
    if not blocks.capacity:
        return Text("-")
    used = blocks.capacity - blocks.free - blocks.cached
    cells = [round(BAR_CELLS * share / blocks.capacity) for share in (used, used + blocks.cached)]
    bar = "█" * cells[0] + "▒" * (cells[1] - cells[0]) + "·" * (BAR_CELLS - cells[1])
    return Text(f"{bar} {used}/{blocks.capacity}")


def _decisions(decisions: Iterable[inference_pb2.Decision]) -> list[Text]:
    return [Text(decision_line(each)) for each in list(decisions)[-NUM_DECISIONS:]]


def decision_line(decision: inference_pb2.Decision) -> str:
    """One decision in a line."""
    changes = ", ".join(f"{it.node.partition('@')[0]} {it.was.role} -> {it.becomes.role}" for it in decision.changes)
    said = f"{decision.kind}: {decision.reason}" + (f" [{changes}]" if changes else "")
    return f"{_ago(decision.age_s)} ago  {said}"


def _ago(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
