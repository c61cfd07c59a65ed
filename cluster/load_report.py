"""The one report of load, simulated or live: figures by their public names, where SLOs were lost, tables."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.report_file import Figure, Sample
from cluster.workload import gaps
from cluster.workload.served import ServedRequest
from core.goodput import Goodput, Outcome, RequestRecord
from core.request import SLO
from core.stats import Timing

SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
STAGES = ("admit", "queue_prefill", "prefill", "reserve", "handoff", "queue_decode", "decode")
LOST_AT = (*STAGES, "refused", "expired", "failed", "lost", "unaccounted")
"""Where an SLO can be lost: a stage of an answered request, or an end without an answer."""

_BEFORE_FIRST: tuple[str, ...] = ("admit", "queue_prefill")
_AFTER_FIRST: tuple[str, ...] = ("reserve", "handoff", "queue_decode")


@dataclass(frozen=True, slots=True)
class LoadRun:
    """A run and what it ran on.

    `arrivals_s` is the time in which requests came: goodput is counted over it. `duration_s` goes on to the last end:
    tokens per second and cost are counted over it, and goodput once more, as other clients count it. `num_nodes` and
    `num_gpus` are means over the run. `num_lost` are requests without any end. `cost` is that of all nodes for the
    whole run.
    """

    records: Sequence[ServedRequest]
    arrivals_s: float
    duration_s: float
    num_nodes: float
    num_gpus: float
    num_lost: int = 0
    num_mix_changes: int = 0
    num_reversals: int = 0
    cost: float = 0.0


def load_report(run: LoadRun) -> dict[str, Figure]:
    """The figures by name; those that nothing was counted for are absent."""
    records = run.records
    account = account_of(records, run.arrivals_s, run.num_lost)
    output_tokens = sum(each.num_tokens for each in records)
    figures: dict[str, Figure] = {
        "requests": len(records) + run.num_lost,
        "arrivals_s": run.arrivals_s,
        "duration_s": run.duration_s,
        "nodes": run.num_nodes,
        "gpus": run.num_gpus,
        "goodput_rps": account.goodput_rps,
        "goodput_rps_whole_run": account.num_met / run.duration_s if run.duration_s > 0 else 0.0,
        "goodput_rps_per_node": account.goodput_rps / run.num_nodes,
        "goodput_rps_per_gpu": account.goodput_rps / run.num_gpus,
        **({} if account.attainment is None else {"attainment": account.attainment}),
        **latencies(records),
        "finished": _number(records, Outcome.FINISHED),
        "refused": _number(records, Outcome.REFUSED),
        "expired": _number(records, Outcome.EXPIRED),
        "failed": _number(records, Outcome.FAILED),
        "cancelled": account.num_cancelled,
        "lost": run.num_lost,
        "mix_changes": run.num_mix_changes,
        "reversals": run.num_reversals,
        "output_tokens_per_s": output_tokens / run.duration_s if run.duration_s > 0 else 0.0,
        "cached_prompt_tokens_share": cached_share(records),
    }
    if run.cost and output_tokens:
        figures["cost_per_million_output_tokens"] = run.cost / output_tokens * 1e6
    lost = losses(records, run.num_lost)
    figures |= {f"slo_lost_{where}": lost[where] for where in LOST_AT}
    for name, group in groups(records).items():
        part = account_of(group, run.arrivals_s)
        figures |= {f"{name}.requests": len(group), f"{name}.goodput_rps": part.goodput_rps}
        figures |= {} if part.attainment is None else {f"{name}.attainment": part.attainment}
        figures |= {f"{name}.{what}": value for what, value in latencies(group).items()}
    return figures


def account_of(records: Sequence[ServedRequest], seconds: float, num_lost: int = 0) -> Goodput:
    """Goodput with every request held to its own SLO; requests without an end are misses."""
    counted = [each for each in records if each.outcome is not Outcome.CANCELLED]
    num_met = sum(each.is_met for each in counted)
    return Goodput(len(counted) + num_lost, num_met, len(records) - len(counted), seconds)


def latencies(records: Sequence[ServedRequest]) -> dict[str, float]:
    """Percentiles of finished requests, in seconds; gaps between tokens are read from classes 0.5 % wide."""
    finished = [each for each in records if each.outcome is Outcome.FINISHED]
    columns = {
        "ttft_s": sorted(each.ttft_s for each in finished if each.ttft_s is not None),
        "tpot_s": sorted(tpot_s for each in finished if (tpot_s := each.tpot_s) is not None),
    }
    found = {
        f"{name}_{word}": percentile(values, share)
        for name, values in columns.items()
        for word, share in SHARES.items()
        if values
    }
    gap_s = gaps.percentile((each.gaps for each in finished), 0.99)
    return found if gap_s is None else found | {"itl_s_p99": gap_s}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one value in order, straight in between."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def cached_share(records: Sequence[ServedRequest]) -> float:
    """The share of prompt tokens whose KV was found instead of computed."""
    answered = [each for each in records if each.num_tokens]
    prompt = sum(each.item.prompt_tokens for each in answered)
    return sum(each.num_cached_tokens for each in answered) / prompt if prompt else 0.0


def losses(records: Iterable[ServedRequest], num_lost: int = 0) -> Counter[str]:
    """Missed requests by where they were lost (`LOST_AT`)."""
    found = Counter({"lost": num_lost})
    found.update(lost_at(each) for each in records if each.outcome is not Outcome.CANCELLED and not each.is_met)
    return found


def lost_at(record: ServedRequest) -> str:
    """Where a missed request lost its SLO.

    The work itself where it alone took too long (prefill for the first token, decode for the others), else the longest
    wait before it. A request that missed both targets lost with the first. `unaccounted`: no ledger says it.
    """
    return loss_of(record.record, record.timing, record.slo)


def loss_of(record: RequestRecord, timing: Timing | None, slo: SLO) -> str:
    """`lost_at` of what every report and every metric is made from."""
    if record.outcome is not Outcome.FINISHED:
        return record.outcome.value
    if timing is None or record.ttft_s is None:
        return "unaccounted"
    if record.ttft_s > slo.ttft_s:
        work, work_s, limit_s, waits = "prefill", timing.prefill_s, slo.ttft_s, _BEFORE_FIRST
    else:
        work, work_s, limit_s, waits = "decode", timing.decode_s, slo.tpot_s * (record.num_tokens - 1), _AFTER_FIRST
    waited = {name: getattr(timing, f"{name}_s") for name in waits}
    longest = max(waited, key=lambda name: waited[name])
    return work if work_s > limit_s or not waited[longest] else longest


def groups(records: Iterable[ServedRequest]) -> dict[str, list[ServedRequest]]:
    """Requests by tenant and class; empty where all are of one."""
    found = dict[str, list[ServedRequest]]()
    for each in records:
        found.setdefault(_group(each), []).append(each)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _group(record: ServedRequest) -> str:
    item = record.item
    parts = [item.tenant or "no tenant", "offline" if item.offline else f"priority {item.priority}"]
    return ", ".join(parts if item.offline or item.priority else parts[:1])


def _number(records: Iterable[ServedRequest], outcome: Outcome) -> int:
    return sum(each.outcome is outcome for each in records)


def request_samples(records: Iterable[ServedRequest]) -> list[Sample]:
    """Every request, for the report file."""
    return [_sample(each) for each in records]


def _sample(record: ServedRequest) -> Mapping[str, object]:
    item, timing = record.item, record.timing
    sample: dict[str, object] = {
        "kind": "request",
        "at_s": item.at_s,
        "prompt_tokens": item.prompt_tokens,
        "output_tokens": item.output_tokens,
        "outcome": record.outcome.value,
        "met": record.is_met,
        "ttft_s": record.ttft_s,
        "tpot_s": record.tpot_s,
        "last_token_s": record.last_token_s,
        "num_tokens": record.num_tokens,
        "cached_tokens": record.num_cached_tokens,
    }
    if item.tenant:
        sample["tenant"] = item.tenant
    if timing is not None:
        sample |= {f"{stage}_s": getattr(timing, f"{stage}_s") for stage in STAGES}
    return sample
