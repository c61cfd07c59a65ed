"""Metrics of what the hardware gave and cost. Absent where a fact is missing: a peak, a price, a model's size."""

from cluster.metrics.rows import counter, gauge

EFFICIENCY = (
    counter(
        "penstock_node_model_flops",
        "Estimated arithmetic of the model's matrices and attention; absent for mixtures of experts.",
        "node",
        unit="operations",
    ),
    counter(
        "penstock_node_model_bytes",
        "Estimated memory reads: the weights once a step, and the KV that rows attend to; absent as above.",
        "node",
        unit="bytes",
    ),
    gauge(
        "penstock_node_peak_flops", "Peak arithmetic per second of a node, as configured.", "node", unit="operations/s"
    ),
    gauge("penstock_node_peak_bytes_per_second", "Peak memory reads of a node, as configured.", "node", unit="bytes/s"),
    gauge(
        "penstock_node_mfu_ratio", "Model FLOPs utilisation of the last 10 s, idle time counted.", "node", unit="0 to 1"
    ),
    gauge(
        "penstock_node_mbu_ratio",
        "Memory bandwidth utilisation of the last 10 s, idle time counted.",
        "node",
        unit="0 to 1",
    ),
    counter("penstock_node_seconds", "Time that nodes were there, all together.", unit="node-seconds"),
    counter("penstock_cost", "What that time cost, in the currency of --node-cost-per-hour.", unit="currency"),
    counter(
        "penstock_tenant_cost",
        "The same by tenant, shared by the tokens done for each; idle time falls on those who come next.",
        "tenant",
        unit="currency",
    ),
    gauge(
        "penstock_cost_per_million_tokens",
        "Cost so far per million tokens delivered so far; absent before the first.",
        unit="currency",
    ),
)
