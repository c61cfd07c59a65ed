"""Metrics of the one that moves a RayCluster; absent where nothing moves. All labels are words of ours."""

from cluster.metrics.rows import counter, gauge

KUBE = (
    gauge("penstock_kube_leader", "1 while this gateway holds the Lease and moves the fleet, else 0.", unit="0 or 1"),
    gauge(
        "penstock_kube_wanted_nodes",
        "Nodes that were asked for, by the controller or by KEDA, before the groups' bounds.",
        unit="nodes",
    ),
    gauge("penstock_kube_replicas", "Replicas of the RayCluster's worker groups, all together.", unit="pods"),
    gauge(
        "penstock_kube_old_pods",
        "Worker pods that were made of another template than their group has now.",
        unit="pods",
    ),
    counter("penstock_kube_rounds", "Looks at the RayCluster, its pods and the nodes.", unit="rounds"),
    counter("penstock_kube_writes", "Writes of the RayCluster that were accepted.", unit="writes"),
    counter(
        "penstock_kube_changes",
        "What was done to nodes. kind: added, drained, kept (not drained after all), removed, renewed (another pod).",
        "kind",
        unit="nodes",
    ),
    counter(
        "penstock_kube_troubles",
        "Calls that did not do what they should. kind: conflict, forbidden, missing, invalid, unreachable.",
        "kind",
        unit="calls",
    ),
    counter("penstock_kube_lost_events", "Events for people that could not be written.", unit="events"),
)
