"""What a node reports of its KV transfers, as it travels to the head, and back."""

from cluster.api.v1.post_pb2 import Count, KVLink, KVMoved, NodeReport
from cluster.live.hands import TransferCounts
from core.ids import NodeId
from core.transfer import MovedKV, PeerLink, TransferReport


def node_report(fetches: TransferCounts, links: TransferReport) -> NodeReport:
    """For the head. Failed fetches are counted by their kind beside what the links count."""
    failed = (("fetch_failed.corrupt", fetches.num_corrupt), ("fetch_failed.lost", fetches.num_lost))
    counts = sorted((*links.counts, *(pair for pair in failed if pair[1])))
    return NodeReport(
        num_fetches=fetches.num_fetches,
        num_failed_fetches=fetches.num_failed,
        num_bytes=fetches.num_bytes,
        links=[KVLink(peer=link.peer, transport=link.transport, why=link.why) for link in links.links],
        counts=[Count(name=name, value=value) for name, value in counts],
        moved=[
            KVMoved(transport=it.transport, num_fetches=it.num_fetches, num_bytes=it.num_bytes) for it in links.moved
        ],
    )


def transfers_of(report: NodeReport) -> TransferReport:
    """At the head."""
    links = (PeerLink(NodeId(link.peer), link.transport, link.why) for link in report.links)
    moved = (MovedKV(it.transport, it.num_fetches, it.num_bytes) for it in report.moved)
    return TransferReport(tuple(links), tuple((count.name, count.value) for count in report.counts), tuple(moved))
