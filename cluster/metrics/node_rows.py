"""Metrics of nodes, as they report themselves, and of who steers them. `node` is the name of a slot: a closed set."""

from cluster.metrics.rows import counter, gauge

NODES = (
    gauge("penstock_nodes", "Nodes that run, by what their mix makes them.", "role", unit="nodes"),
    gauge("penstock_node_up", "1 while a node runs in this slot, else 0.", "node", unit="0 or 1"),
    counter("penstock_node_deaths", "Nodes of this slot that were lost.", "node", unit="nodes"),
    gauge(
        "penstock_node_role", "1 for the role that the node's mix has now, 0 for others.", "node", "role", unit="0 or 1"
    ),
    gauge(
        "penstock_node_prefill_tokens_per_step", "Prompt tokens that its mix allows in a step.", "node", unit="tokens"
    ),
    gauge("penstock_node_max_decode_rows", "Rows that its mix allows.", "node", unit="rows"),
    gauge("penstock_node_running_rows", "Rows in the running batch.", "node", unit="rows"),
    gauge("penstock_node_prefilling", "Attempts whose prompt waits or is being computed.", "node", unit="attempts"),
    gauge("penstock_node_incoming", "Attempts whose KV is on its way here.", "node", unit="attempts"),
    gauge("penstock_node_leases", "Leases of blocks that others may read.", "node", unit="leases"),
    gauge("penstock_node_queued_tokens", "Prompt tokens not computed yet.", "node", unit="tokens"),
    gauge("penstock_node_queued_offline_tokens", "Of them, those of the offline class.", "node", unit="tokens"),
    gauge(
        "penstock_kv_blocks",
        "Blocks of the pool by state; the states add up to the pool.",
        "node",
        "state",
        unit="blocks",
    ),
    counter(
        "penstock_node_steps", "Steps. kind: prefill (prompts alone), mixed, or decode.", "node", "kind", unit="steps"
    ),
    counter("penstock_node_busy_seconds", "Time in steps.", "node", unit="seconds"),
    counter(
        "penstock_node_computed_tokens",
        "Tokens that steps computed. kind: prefill or decode.",
        "node",
        "kind",
        unit="tokens",
    ),
    counter(
        "penstock_node_prompt_tokens", "Prompt tokens of attempts whose prefill began here.", "node", unit="tokens"
    ),
    counter("penstock_node_cached_tokens", "Of them, those whose KV was found here.", "node", unit="tokens"),
    counter(
        "penstock_node_preemptions",
        "Rows that gave way. way: recompute, or save to host memory.",
        "node",
        "way",
        unit="rows",
    ),
    counter("penstock_node_restores", "Saved rows that came back.", "node", unit="rows"),
    counter("penstock_node_migrations", "Rows that went on elsewhere.", "node", unit="rows"),
    counter("penstock_node_draft_tokens", "Tokens that rows guessed.", "node", unit="tokens"),
    counter("penstock_node_accepted_tokens", "Of them, those that the model confirmed.", "node", unit="tokens"),
    counter("penstock_node_dropped_events", "Messages that named nothing any more.", "node", unit="events"),
    counter("penstock_kv_received_bytes", "KV that was read from other nodes.", "node", "transport", unit="bytes"),
    counter("penstock_kv_fetches", "Reads of other nodes' KV.", "node", "transport", unit="fetches"),
    gauge("penstock_kv_links", "Peers that are read by this transport.", "node", "transport", unit="peers"),
    counter(
        "penstock_kv_events",
        "What was refused, failed or went another way: fallback, staged, fetch_failed.corrupt, fetch_failed.lost, …",
        "node",
        "event",
        unit="events",
    ),
)

CONTROLLER = (
    counter("penstock_decisions", "Decisions about mixes and nodes.", "kind", unit="decisions"),
    counter(
        "penstock_mix_changes",
        "Changes of a node's mix that were carried out; equal roles: only a budget changed.",
        "from_role",
        "to_role",
        unit="changes",
    ),
    gauge(
        "penstock_infeasible", "1 while no layout of these nodes can serve the load within its targets.", unit="0 or 1"
    ),
    gauge("penstock_wanted_nodes", "How many nodes there should be; absent while nobody says.", unit="nodes"),
)
