"""Metrics of requests, as the gateway saw them end."""

from cluster.metrics.rows import counter, gauge, histogram

REQUESTS = (
    counter(
        "penstock_requests",
        "Ended requests, every choice counted. slo: met, missed, or none where it named no targets or was cancelled.",
        "class",
        "tenant",
        "outcome",
        "slo",
        unit="requests",
    ),
    counter(
        "penstock_goodput_requests",
        "Requests that met both their targets; its rate is goodput.",
        "class",
        "tenant",
        unit="requests",
    ),
    counter(
        "penstock_slo_requests",
        "Requests that goodput counts: met and missed, with those turned away at the door for want of room.",
        unit="requests",
    ),
    counter(
        "penstock_slo_misses",
        "Missed requests by where they lost their target: a stage, or an end without an answer.",
        "stage",
        unit="requests",
    ),
    counter(
        "penstock_refusals",
        "Requests that were not taken or were refused, by the error's code.",
        "code",
        unit="requests",
    ),
    counter(
        "penstock_failures", "Accepted requests that failed or expired, by the error's code.", "code", unit="requests"
    ),
    counter("penstock_retries", "Attempts after a request's first one: a node or KV was lost.", unit="attempts"),
    counter("penstock_prompt_tokens", "Prompt tokens of ended requests.", "tenant", unit="tokens"),
    counter(
        "penstock_cached_tokens", "Of them, those whose KV was found instead of computed.", "tenant", unit="tokens"
    ),
    counter("penstock_generation_tokens", "Tokens that were delivered.", "tenant", unit="tokens"),
    histogram("penstock_ttft_seconds", "Time to the first token, from the request's arrival.", "class"),
    histogram("penstock_tpot_seconds", "Mean time per token after the first, of finished requests.", "class"),
    histogram("penstock_itl_seconds", "Times between tokens as the gateway got them.", "class"),
    histogram("penstock_e2e_seconds", "From a request's arrival to its end, of finished requests.", "class"),
    histogram(
        "penstock_stage_seconds",
        "The parts of a finished request's time: the seven of its ledger, and what none of them explains.",
        "stage",
    ),
    gauge(
        "penstock_slo_target_seconds",
        "Targets of the classes that have any. kind: ttft or tpot.",
        "class",
        "kind",
        unit="seconds",
    ),
    gauge("penstock_open_requests", "Requests that have not ended, every choice counted.", unit="requests"),
    gauge("penstock_serving", "1 while some node prefills and some node decodes, else 0.", unit="0 or 1"),
    gauge("penstock_draining", "1 while the gateway takes no new request, else 0.", unit="0 or 1"),
    gauge("penstock_event_loop_lag_seconds", "By how much the gateway's loop was late last.", unit="seconds"),
    gauge("penstock_build_info", "Always 1; the version stands in its label.", "version"),
)
