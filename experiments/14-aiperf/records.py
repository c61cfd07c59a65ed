"""What AIPerf says of its requests, what the server says of the very same ones, and where they differ."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isclose
from pathlib import Path
from statistics import median

from cluster.workload.items import WorkItem, Workload
from core.request import SLO


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as AIPerf has it. `at_s` counts from the first one sent; `late_s` is how late it was sent. Times
    are None where nothing was answered, and `error` says why."""

    id: str
    at_s: float
    late_s: float
    ttft_s: float | None
    tpot_s: float | None
    is_good: bool
    error: str


@dataclass(frozen=True, slots=True)
class AiperfRun:
    """A run as AIPerf reports it; requests in the order in which they were sent.

    `goodput_rps` is its own figure: good requests over `duration_s`, which begins one gap before the first is sent and
    ends with the last token of all.
    """

    requests: tuple[Asked, ...]
    num_good: int
    goodput_rps: float
    duration_s: float

    @property
    def num_errors(self) -> int:
        """Requests that were refused, or failed."""
        return sum(bool(each.error) for each in self.requests)


@dataclass(frozen=True, slots=True)
class Served:
    """A request as the server logged it, by the clock of its gateway. `is_met` None: it had no targets."""

    prompt_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class Differences:
    """Two verdicts on the same requests. `ttft_s` and `tpot_s` are medians of AIPerf's less the server's, None where
    neither has any."""

    only_aiperf: tuple[str, ...]
    only_server: tuple[str, ...]
    ttft_s: float | None
    tpot_s: float | None


def read_aiperf(folder: Path) -> AiperfRun:
    """A run from the folder that AIPerf exported it to. Raises RuntimeError where its own sums do not agree."""
    lines = (folder / "profile_export.jsonl").read_text().splitlines()
    raw = sorted(map(json.loads, lines), key=lambda each: int(each["metadata"]["request_start_ns"]))
    first_ns = raw[0]["metadata"]["request_start_ns"] if raw else 0
    requests = tuple(_asked(each, first_ns) for each in raw)
    said = json.loads((folder / "profile_export_aiperf.json").read_text())
    num_good, num_listed = round(_average(said, "good_request_count")), sum(each.is_good for each in requests)
    if num_good != num_listed:
        raise RuntimeError(f"AIPerf says {num_good} good requests and lists {num_listed}")
    start, end = (datetime.fromisoformat(said[name]) for name in ("start_time", "end_time"))
    goodput_rps, duration_s = _average(said, "goodput"), (end - start).total_seconds()
    if not isclose(goodput_rps * duration_s, num_good, rel_tol=0.001):
        raise RuntimeError(f"AIPerf says {goodput_rps} good requests a second: not {num_good} in {duration_s} s")
    return AiperfRun(requests, num_good, goodput_rps, duration_s)


def _asked(raw: Mapping[str, Mapping[str, object]], first_ns: int) -> Asked:
    told, metrics, error = raw["metadata"], raw["metrics"], raw.get("error")
    start_ns = _number(told["request_start_ns"])
    return Asked(
        id=str(told["x_request_id"]),
        at_s=(start_ns - first_ns) / 1e9,
        late_s=(start_ns - _number(told["credit_issued_ns"])) / 1e9,
        ttft_s=_seconds(metrics, "time_to_first_token"),
        tpot_s=_seconds(metrics, "inter_token_latency"),
        is_good=bool(_value(metrics, "good_request_count")),
        error=str(error["message"]) if error else "",
    )


def _average(said: Mapping[str, Mapping[str, object]], name: str) -> float:
    """Of a figure of the summary; AIPerf leaves out those that are nothing."""
    return _number(said[name]["avg"]) if name in said else 0.0


def _value(metrics: Mapping[str, object], name: str) -> float | None:
    found = metrics.get(name)
    return _number(found["value"]) if isinstance(found, dict) else None


def _seconds(metrics: Mapping[str, object], name: str) -> float | None:
    """Of a figure in milliseconds."""
    found = _value(metrics, name)
    return None if found is None else found / 1000


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


def served_by_id(log: str) -> dict[str, Served]:
    """What `--request-log json` wrote between other lines, by the client's own id."""
    found = dict[str, Served]()
    for line in log.splitlines():
        facts = json.loads(line) if line.startswith('{"ended_at"') else {}
        if facts.get("client_id"):
            found[facts["client_id"]] = Served(facts["prompt_tokens"], facts["ttft_s"], facts["tpot_s"], facts["met"])
    return found


def counter(page: str, name: str) -> int:
    """A counter of a metrics page, over all its labels."""
    sample = re.compile(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", re.MULTILINE)
    return round(sum(map(float, sample.findall(page))))


def as_workload(run: AiperfRun, served: Mapping[str, Served], answer_tokens: int) -> Workload:
    """The same requests: moments as AIPerf sent them, prompts as long as the server found them.

    Raises RuntimeError where the server logged no such request.
    """
    missing = [each.id for each in run.requests if each.id not in served]
    if missing:
        raise RuntimeError(f"{len(missing)} of AIPerf's requests are not in the server's log, {missing[0]} is one")
    items = [WorkItem(each.at_s, served[each.id].prompt_tokens, answer_tokens) for each in run.requests]
    return Workload("aiperf", tuple(items))


def differences(run: AiperfRun, served: Mapping[str, Served]) -> Differences:
    """AIPerf's verdicts and times beside the server's."""
    pairs = [(each, served[each.id]) for each in run.requests]
    return Differences(
        only_aiperf=tuple(each.id for each, own in pairs if each.is_good and not own.is_met),
        only_server=tuple(each.id for each, own in pairs if own.is_met and not each.is_good),
        ttft_s=_median_difference((each.ttft_s, own.ttft_s) for each, own in pairs),
        tpot_s=_median_difference((each.tpot_s, own.tpot_s) for each, own in pairs),
    )


def _median_difference(pairs: Iterator[tuple[float | None, float | None]]) -> float | None:
    found = [theirs - ours for theirs, ours in pairs if theirs is not None and ours is not None]
    return median(found) if found else None


def nearest(run: AiperfRun, slo: SLO, share: float) -> int:
    """How many answered requests are within this share of a target: those whose verdict a little noise turns."""
    times = [((each.ttft_s, slo.ttft_s), (each.tpot_s, slo.tpot_s)) for each in run.requests]
    return sum(any(is_near(got, target, share) for got, target in both) for both in times)


def is_near(seconds: float | None, target_s: float, share: float) -> bool:
    """Whether a time is so close to its target."""
    return seconds is not None and abs(seconds / target_s - 1) <= share


def largest_shift_s(one: Sequence[Asked], other: Sequence[Asked]) -> float:
    """How far apart two runs sent the same request, at most, once each is counted from its first."""
    return max((abs(a.at_s - b.at_s) for a, b in zip(one, other, strict=True)), default=0.0)
