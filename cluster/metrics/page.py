"""docs/metrics.md from the table."""

from cluster.metrics.rows import Kind, Metric
from cluster.metrics.table import SECTIONS

HEAD = """# Metrics

`GET /metrics` on the HTTP port tells all of these, in Prometheus' text or in OpenMetrics', as the scraper's `accept`
asks. Where keys are asked for it needs an operator's key. `--metrics-port` serves the same at `--admin-host` without
a key, for scrapers inside a network that lets nobody else in. `--vllm-metrics off` leaves out what has vLLM's names.

Every look is taken in one moment from facts that somebody owns: ledgers of ended requests, reports of nodes,
decisions. Nothing is counted twice, and a metric whose facts are missing (a peak, a price, a size that cannot be
estimated) is absent, never 0.

Labels come from closed sets. `node` is the name of a slot, which outlives the processes in it; `tenant` is one that
the access file names, else empty; `class` is an SLO class; `stage` is a part of a request's ledger or an end without
an answer. There is no request, pod or user in a label. All metrics have `model_name`. A node's counters begin again
with its process; those by vLLM's names add up all processes of the cluster, and do not fall when one dies.

Goodput is a counter: `rate(penstock_goodput_requests_total[1m])`. Refused, expired and failed requests are misses,
cancelled ones are left out. A request that is turned away at the door because there is no room is a miss where it
named targets of its own.

The process's own CPU, memory and files are there as `process_…`. A Grafana board over these names is
[helm/penstock/dashboards/penstock.json](../helm/penstock/dashboards/penstock.json). This page and that board are
written by `python -m cluster.metrics.generate` from the table in `cluster/metrics/table.py`.
"""

TABLE_HEAD = "| name | kind | unit | labels | what it says |\n| --- | --- | --- | --- | --- |\n"


def markdown() -> str:
    """The page."""
    parts = [HEAD]
    for section in SECTIONS:
        parts.append(f"\n## {section.group}\n\n{TABLE_HEAD}")
        parts += [_row(row) for row in section.rows]
    return "".join(parts)


def _row(row: Metric) -> str:
    name = f"{row.name}_total" if row.kind is Kind.COUNTER else row.name
    labels = ", ".join(f"`{label}`" for label in row.labels)
    return f"| `{name}` | {row.kind} | {row.unit} | {labels} | {row.help} |\n"
