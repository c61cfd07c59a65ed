"""Workloads in one word: a file or the name of a generator, and what is different about it.

`trace.jsonl,rate=3`, `sharegpt,rate=4,requests=500`, `lengths,in=lognormal:800:1,out=200,arrivals=gamma:4,tenant=a`.
"""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from cluster.workload.arrivals import arrivals_of
from cluster.workload.generate import Extent, generated
from cluster.workload.items import BLOCK_TOKENS, mixed
from cluster.workload.lengths import lengths_of
from cluster.workload.statistics import PUBLISHED, Statistics
from cluster.workload.traces import Trace, read_trace
from core.errors import ConfigError
from core.request import SLO

LENGTHS = "lengths"
DEFAULT_REQUESTS = 1000
_SWITCHES = ("offline", "keep-stamps")
_NUMBERS = ("rate", "speed", "seconds", "requests", "start", "priority", "ttft", "tpot", "block")
_WORDS = ("in", "out", "arrivals", "tenant")
_WHOLE = ("requests", "block")


@dataclass(frozen=True, slots=True)
class _Spec:
    """One word, taken apart."""

    text: str
    source: str
    words: dict[str, str]
    numbers: dict[str, float]
    switches: frozenset[str]

    def fail(self, why: str) -> ConfigError:
        return ConfigError([f"workload {self.text!r}: {why}"])


def workload_of(specs: list[str], seed: int, num_requests: int | None = None) -> Trace:
    """The workload of one or more words, with notes on what was done. Raises ConfigError.

    Generators that are told no end make `num_requests` (None: a whole pattern, or 1,000).
    """
    traces = [_one(_parsed(text), f"{seed} {place}", num_requests) for place, text in enumerate(specs)]
    notes = tuple(f"{trace.workload.name}: {note}" for trace in traces for note in trace.notes)
    if not any(trace.workload.items for trace in traces):
        raise ConfigError(["the workload has no request"])
    if len(traces) == 1:
        return Trace(traces[0].workload, notes)
    workloads = [trace.workload for trace in traces]
    return Trace(mixed(" + ".join(workload.name for workload in workloads), workloads), notes)


def _parsed(text: str) -> _Spec:
    source, *rest = text.split(",")
    spec = _Spec(text, source, {}, {}, frozenset(rest) & frozenset(_SWITCHES))
    for part in rest:
        name, _, value = part.partition("=")
        if part in _SWITCHES:
            continue
        if name in _WORDS and value:
            spec.words[name] = value
        elif name in _NUMBERS and value:
            spec.numbers[name] = _number(spec, name, value)
        else:
            known = ", ".join(f"{each}=" for each in (*_WORDS, *_NUMBERS))
            raise spec.fail(f"{part!r} is not understood; known are {known}, {', '.join(_SWITCHES)}")
    return spec


def _number(spec: _Spec, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise spec.fail(f"{name} must be a number, not {value!r}") from None
    if name in _WHOLE and (number != int(number) if abs(number) < inf else True):
        raise spec.fail(f"{name} must be a whole number, not {value}")
    if name == "priority":
        return number
    if not (0 <= number < inf if name == "start" else 0 < number < inf):
        raise spec.fail(f"{name} must be above 0, not {value}")
    return number


def _one(spec: _Spec, seed: str, num_requests: int | None) -> Trace:
    is_generated = spec.source == LENGTHS or spec.source in PUBLISHED
    trace = _generated(spec, seed, num_requests) if is_generated else _read(spec)
    workload, numbers = trace.workload, spec.numbers
    if numbers.keys() & {"ttft", "tpot"} and not numbers.keys() >= {"ttft", "tpot"}:
        raise spec.fail("an SLO needs both ttft= and tpot=, in seconds")
    slo = SLO(numbers["ttft"], numbers["tpot"]) if "ttft" in numbers else None
    if spec.words.keys() & {"tenant"} or slo or numbers.get("priority") or "offline" in spec.switches:
        priority, is_offline = int(numbers.get("priority", 0)), "offline" in spec.switches
        workload = workload.of_tenant(spec.words.get("tenant", ""), priority=priority, offline=is_offline, slo=slo)
    return Trace(workload.later(numbers.get("start", 0.0)), trace.notes)


def _generated(spec: _Spec, seed: str, num_requests: int | None) -> Trace:
    statistics = _statistics(spec)
    wrong = spec.numbers.keys() & {"block"} | spec.switches & {"keep-stamps"}
    if wrong:
        raise spec.fail(f"{', '.join(sorted(wrong))} is for trace files")
    rate = spec.numbers.get("rate", statistics.rate_rps) * spec.numbers.get("speed", 1.0)
    scale = 1.0 if "arrivals" in spec.words else rate / statistics.rate_rps
    extent = _extent(spec, statistics, scale, num_requests)
    workload = generated(spec.source, statistics, rate / scale, extent, seed).scaled(scale)
    workload = replace(workload, name=spec.source)
    return Trace(workload, (f"{len(workload.items)} requests generated at {rate:g} req/s",))


def _extent(spec: _Spec, statistics: Statistics, scale: float, num_requests: int | None) -> Extent:
    """As asked; else a whole pattern where the statistics have one, so many requests where not. Published patterns are
    scaled in time as a trace is: `scale` times as fast."""
    seconds, requests = spec.numbers.get("seconds"), spec.numbers.get("requests")
    if seconds is None and requests is None:
        period_s = None if "arrivals" in spec.words or num_requests else statistics.arrivals.period_s
        return Extent(period_s, None if period_s else num_requests or DEFAULT_REQUESTS)
    return Extent(None if seconds is None else seconds * scale, None if requests is None else int(requests))


def _statistics(spec: _Spec) -> Statistics:
    words = spec.words
    if spec.source == LENGTHS and not words.keys() >= {"in", "out"}:
        raise spec.fail("needs in= and out=, the lengths of prompts and answers")
    base = PUBLISHED.get(spec.source)
    prompt = lengths_of(words["in"]) if "in" in words else None
    output = lengths_of(words["out"]) if "out" in words else None
    arrivals = arrivals_of(words["arrivals"]) if "arrivals" in words else None
    if base is None:
        assert prompt is not None and output is not None
        return Statistics(prompt, output, 1.0, arrivals or arrivals_of("poisson"))
    return Statistics(
        prompt or base.prompt, output or base.output, base.rate_rps, arrivals or base.arrivals, base.prefixes
    )


def _read(spec: _Spec) -> Trace:
    path = Path(spec.source).expanduser()
    if not path.is_file():
        known = ", ".join((*PUBLISHED, LENGTHS))
        raise spec.fail(f"{spec.source!r} is neither a file nor one of {known}")
    wrong = spec.words.keys() & {"in", "out", "arrivals"}
    if wrong:
        raise spec.fail(f"{', '.join(sorted(wrong))} is for generators; a file has its own")
    block = int(spec.numbers.get("block", BLOCK_TOKENS))
    trace = read_trace(path, block_tokens=block, keep_stamps="keep-stamps" in spec.switches)
    workload, notes = trace.workload, list(trace.notes)
    if (seconds := spec.numbers.get("seconds")) is not None:
        workload = workload.until(seconds)
    if (requests := spec.numbers.get("requests")) is not None:
        workload = workload.first(int(requests))
    if (rate := spec.numbers.get("rate")) is not None:
        factor = rate / workload.rate_rps if workload.rate_rps else 1.0
        workload = workload.at_rate(rate)
        notes.append(f"time scaled by {factor:.4g} to a mean of {rate:g} req/s")
    if (speed := spec.numbers.get("speed")) is not None:
        workload = workload.scaled(speed)
        notes.append(f"time scaled by {speed:.4g}")
    return Trace(workload, tuple(notes))
