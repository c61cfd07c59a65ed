"""Metrics of batch files; absent where none are kept. All labels are words of ours."""

from cluster.metrics.rows import counter, gauge

BATCHES = (
    gauge(
        "penstock_batches",
        "Batches that are kept, by OpenAI's word for where they are: validating, in_progress, completed, …",
        "status",
        unit="batches",
    ),
    gauge(
        "penstock_batch_requests",
        "Requests of batches that are not over. state: queued (not asked yet) or running.",
        "state",
        unit="requests",
    ),
    counter(
        "penstock_batch_requests_ended",
        "Requests of all batches that are kept. outcome: answered, or failed (refused, expired or cancelled).",
        "outcome",
        unit="requests",
    ),
)
