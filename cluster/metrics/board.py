"""A Grafana board from the table of metrics: rows of panels, each a query over names that the table has."""

import re
from dataclasses import dataclass

from cluster.metrics.table import METRICS

Json = dict[str, object]

RATE = "$__rate_interval"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
PICKED = 'model_name=~"$model",namespace=~"$namespace"'
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, with what a line is called; `{labels}` of Grafana in double braces."""

    text: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. `unit` is Grafana's word for it."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def rate_of(name: str, by: str = "") -> str:
    """A counter's rate, summed but for some labels."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({METRICS[name].sample}{{{PICKED}}}[{RATE}]))"


def value_of(name: str, by: str = "") -> str:
    """A gauge, summed but for some labels."""
    return f"sum{f' by ({by}) ' if by else ''}({METRICS[name].sample}{{{PICKED}}})"


def quantiles_of(name: str) -> tuple[Query, ...]:
    """A histogram's percentiles, all classes together."""
    buckets = f"sum by (le) (rate({METRICS[name].name}_bucket{{{PICKED}}}[{RATE}]))"
    return tuple(Query(f"histogram_quantile({part:g}, {buckets})", f"p{part * 100:g}") for part in QUANTILES)


def latency_panel(title: str, name: str, kind: str) -> Panel:
    """Percentiles beside the lines of the classes that have targets."""
    target = f'max by (class) (penstock_slo_target_seconds{{{PICKED}, kind="{kind}"}})'
    return Panel(title, "s", (*quantiles_of(name), Query(target, "target of {{class}}")))


def _plain(title: str, unit: str, query: str, legend: str, is_stacked: bool = False) -> Panel:
    return Panel(title, unit, (Query(query, legend),), is_stacked)


def _pace() -> tuple[Query, ...]:
    """How fast users see tokens come: one user in two sees the first or more, nine in ten the second."""
    return tuple(Query(f"1 / {query.text}", query.legend) for query in quantiles_of("penstock_tpot_seconds")[:2])


_STAGE_MEAN = (
    f"sum by (stage) (rate(penstock_stage_seconds_sum{{{PICKED}}}[{RATE}])) / "
    f"sum by (stage) (rate(penstock_stage_seconds_count{{{PICKED}}}[{RATE}]))"
)
_MET, _COUNTED = rate_of("penstock_goodput_requests"), rate_of("penstock_slo_requests")
_TOKENS = rate_of("penstock_generation_tokens")
_TENANT_COST = f"{rate_of('penstock_tenant_cost', 'tenant')} * 3600"
_PEAK_BYTES = value_of("penstock_node_peak_bytes_per_second", "node")

ROWS = (
    Row(
        "Goodput",
        (
            Panel("Goodput", "reqps", (Query(_MET, "met"), Query(_COUNTED, "counted"))),
            _plain("SLO attainment", "percentunit", f"{_MET} / {_COUNTED}", "share met"),
            _plain("Misses by stage", "reqps", rate_of("penstock_slo_misses", "stage"), "{{stage}}", True),
            _plain("Requests by outcome", "reqps", rate_of("penstock_requests", "outcome"), "{{outcome}}", True),
            _plain("Refusals", "reqps", rate_of("penstock_refusals", "code"), "{{code}}", True),
            _plain("Failures", "reqps", rate_of("penstock_failures", "code"), "{{code}}", True),
        ),
    ),
    Row(
        "Latency",
        (
            latency_panel("Time to first token", "penstock_ttft_seconds", "ttft"),
            latency_panel("Time per output token", "penstock_tpot_seconds", "tpot"),
            Panel("Time between tokens", "s", quantiles_of("penstock_itl_seconds")),
            Panel("Whole request", "s", quantiles_of("penstock_e2e_seconds")),
            _plain("Mean time by stage", "s", _STAGE_MEAN, "{{stage}}", True),
            Panel(
                "Open requests and rows",
                "short",
                (
                    Query(value_of("penstock_open_requests"), "open requests"),
                    Query(value_of("penstock_node_running_rows"), "running rows"),
                ),
            ),
        ),
    ),
    Row(
        "Tokens",
        (
            Panel(
                "Tokens per second",
                "short",
                (
                    Query(_TOKENS, "answered per second"),
                    Query(rate_of("penstock_prompt_tokens"), "of prompts per second"),
                ),
            ),
            _plain("Answered by tenant", "short", rate_of("penstock_generation_tokens", "tenant"), "{{tenant}}", True),
            Panel("Tokens per second and user", "short", _pace()),
            _plain(
                "Prompt tokens found cached",
                "percentunit",
                f"{rate_of('penstock_cached_tokens')} / {rate_of('penstock_prompt_tokens')}",
                "share",
            ),
        ),
    ),
    Row(
        "Batch files",
        (
            _plain("Batches", "short", value_of("penstock_batches", "status"), "{{status}}", True),
            _plain("Their requests", "short", value_of("penstock_batch_requests", "state"), "{{state}}", True),
            _plain("Ended", "reqps", rate_of("penstock_batch_requests_ended", "outcome"), "{{outcome}}", True),
        ),
    ),
    Row(
        "Nodes",
        (
            _plain("Nodes by role", "short", value_of("penstock_nodes", "role"), "{{role}}", True),
            _plain("Queued tokens", "short", value_of("penstock_node_queued_tokens", "node"), "{{node}}", True),
            _plain("Running rows", "short", value_of("penstock_node_running_rows", "node"), "{{node}}", True),
            _plain("Blocks by state", "short", value_of("penstock_kv_blocks", "state"), "{{state}}", True),
            _plain("Busy share", "percentunit", rate_of("penstock_node_busy_seconds", "node"), "{{node}}"),
            _plain("Preempted rows", "short", rate_of("penstock_node_preemptions", "way"), "{{way}} per second"),
        ),
    ),
    Row(
        "Transfers",
        (
            _plain("KV read", "Bps", rate_of("penstock_kv_received_bytes", "transport"), "by {{transport}}", True),
            _plain("Fetches", "ops", rate_of("penstock_kv_fetches", "node"), "{{node}}", True),
            _plain("Refused, failed, fallen back", "ops", rate_of("penstock_kv_events", "event"), "{{event}}", True),
        ),
    ),
    Row(
        "Controller",
        (
            _plain("Decisions", "ops", rate_of("penstock_decisions", "kind"), "{{kind}}", True),
            _plain(
                "Mix changes",
                "ops",
                rate_of("penstock_mix_changes", "from_role, to_role"),
                "{{from_role}} to {{to_role}}",
                True,
            ),
            Panel(
                "Out of reach, wanted nodes",
                "short",
                (
                    Query(f"max(penstock_infeasible{{{PICKED}}})", "no layout can serve the load"),
                    Query(f"max(penstock_wanted_nodes{{{PICKED}}})", "wanted nodes"),
                ),
            ),
        ),
    ),
    Row(
        "Kubernetes",
        (
            Panel(
                "Wanted nodes, replicas, nodes",
                "short",
                (
                    Query(f"max(penstock_kube_wanted_nodes{{{PICKED}}})", "wanted nodes"),
                    Query(f"max(penstock_kube_replicas{{{PICKED}}})", "replicas"),
                    Query(value_of("penstock_nodes"), "nodes"),
                    Query(f"max(penstock_kube_old_pods{{{PICKED}}})", "pods of an older template"),
                ),
            ),
            _plain("Changes of nodes", "ops", rate_of("penstock_kube_changes", "kind"), "{{kind}}", True),
            _plain("Trouble with Kubernetes", "ops", rate_of("penstock_kube_troubles", "kind"), "{{kind}}", True),
        ),
    ),
    Row(
        "Efficiency and cost",
        (
            _plain(
                "MFU",
                "percentunit",
                f"{rate_of('penstock_node_model_flops', 'node')} / {value_of('penstock_node_peak_flops', 'node')}",
                "{{node}}",
            ),
            _plain(
                "MBU",
                "percentunit",
                f"{rate_of('penstock_node_model_bytes', 'node')} / {_PEAK_BYTES}",
                "{{node}}",
            ),
            _plain("Cost per million tokens", "short", f"{rate_of('penstock_cost')} / {_TOKENS} * 1e6", "cost"),
            _plain("Cost per hour by tenant", "short", _TENANT_COST, "{{tenant}}", True),
        ),
    ),
)


def board() -> Json:
    """The whole board, as Grafana imports it."""
    panels: list[Json] = []
    at, number = 0, 1
    for row in ROWS:
        panels.append(_row(row, number, at))
        at, number = at + 1, number + 1
        for place, panel in enumerate(row.panels):
            x, line = place * WIDTH % COLUMNS, place * WIDTH // COLUMNS
            panels.append(_panel(panel, number, {"x": x, "y": at + line * HEIGHT, "w": WIDTH, "h": HEIGHT}))
            number += 1
        at += -(-len(row.panels) * WIDTH // COLUMNS) * HEIGHT
    return {
        "title": "Penstock",
        "uid": "penstock",
        "tags": ["penstock", "llm"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [_datasource(), _picked("namespace", "Namespace"), _picked("model", "Model", "model_name")]
        },
        "panels": panels,
    }


def names_in_board() -> frozenset[str]:
    """Every metric that a query names, as it stands there."""
    texts = [query.text for row in ROWS for panel in row.panels for query in panel.queries]
    return frozenset(name for text in texts for name in re.findall(r"penstock_\w+", text))


def _row(row: Row, number: int, at: int) -> Json:
    grid = {"x": 0, "y": at, "w": COLUMNS, "h": 1}
    return {"type": "row", "id": number, "title": row.title, "collapsed": False, "gridPos": grid, "panels": []}


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> Json:
    source = {"type": "prometheus", "uid": "$datasource"}
    stacking = {"mode": "normal" if panel.is_stacked else "none"}
    custom = {"fillOpacity": 30 if panel.is_stacked else 0, "stacking": stacking, "showPoints": "never"}
    targets = [
        {"refId": chr(ord("A") + place), "datasource": source, "expr": query.text, "legendFormat": query.legend}
        for place, query in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "datasource": source,
        "gridPos": grid,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _datasource() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _picked(name: str, words: str, label: str = "") -> Json:
    """A variable to pick series by; all of them match who have no such label at all, as outside Kubernetes."""
    query = f"label_values(penstock_build_info, {label or name})"
    source = {"type": "prometheus", "uid": "$datasource"}
    return {
        "name": name,
        "type": "query",
        "label": words,
        "datasource": source,
        "query": query,
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
