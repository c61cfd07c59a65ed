"""Goodput by `penstock bench serve` and by AIPerf, of the same requests, on nodes that wait instead of computing."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.bench.arms import alternated
from cluster.report_file import write_report
from cluster.service import EMBEDDED_MODEL
from cluster.workload.items import Workload
from cluster.workload.traces import write_trace
from core.errors import ConfigError
from core.request import SLO
from engine.cost_table import CostTable
from engine.model_info import LoadFormat, model_digest
from experiments.arms import arguments, say, skip
from experiments.live import (
    APART,
    TICKS_PER_S,
    TINY,
    LiveArm,
    Place,
    cluster,
    profiled,
    together,
    two_cores,
    write_model,
)

from .compare import AIPERF, PENSTOCK, Cell, Counted, figures_of, sample_of, sentence_of
from .records import (
    AiperfRun,
    as_workload,
    counter,
    differences,
    largest_shift_s,
    nearest,
    read_aiperf,
    served_by_id,
)

PACE = 12.0
"""Steps last so many times as long as on the GPU of the table: a few hundred tokens a second, which cost little."""

TABLE = Path(__file__).parent.parent / "tables" / "h200-llama-3-8b.json"
NEAR = 0.05
LEVELS = ("low", "middle", "high")
OPENAI = re.compile(r"OpenAI: (http://\S+)/v1 ")
OUTLAST_S = 180.0
"""A client may take so much longer than requests come: AIPerf's start, the last answers, a busy machine."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked, and in what time: prompts of a mean length and its deviation, answers of one length, in tokens.
    Layouts have a rate for each of `LEVELS`, in requests per second."""

    prompt: int
    prompt_spread: int
    answer: int
    targets: SLO
    layouts: tuple[tuple[LiveArm, tuple[float, float, float]], ...]


PACED = Ask(768, 200, 40, SLO(1.5, 0.15), ((APART, (2.5, 4.2, 6.0)), (together(256), (2.0, 2.8, 5.5))))
COMPUTED = Ask(448, 150, 100, SLO(2.0, 0.04), ((APART, (1.0, 2.0, 3.0)), (together(64), (1.0, 2.0, 3.0))))


@dataclass(frozen=True, slots=True)
class Bench:
    """What runs need: a model with its costs, what it is asked, AIPerf, how long requests come, a folder for output."""

    place: Place
    ask: Ask
    aiperf: str
    seconds: float
    seed: int
    folder: Path


@dataclass(slots=True)
class Watch:
    """What a run took, known at its end: requests in time by the server's counter, shares of one core and of all."""

    num_met: int = 0
    client_share: float = 0.0
    machine_share: float = 0.0


def paced_place(folder: Path) -> Place:
    """A tiny model, and the table as one of this model that is `PACE` times as slow."""
    model, table = write_model(folder / "tiny", TINY), CostTable.read(TABLE)
    (model / "tokenizer_config.json").write_bytes((EMBEDDED_MODEL / "tokenizer_config.json").read_bytes())
    digest = model_digest(model, LoadFormat.DUMMY)
    facts = replace(table.facts, model="tiny", digest=digest, dtype="float32", device="cpu")
    slow = [
        [replace(each, seconds=tuple(PACE * s for s in each.seconds)) for each in of]
        for of in (table.steps, table.checks)
    ]
    CostTable.of(facts, slow[0], table.copies, slow[1]).write(folder / "paced.json")
    return Place(model, folder / "paced.json", folder / "serve.log", is_paced=True)


def computing_place(folder: Path) -> Place:
    """The model of experiment 06, computed, with costs measured on one core."""
    model, table = write_model(folder / "random-39m"), folder / "costs.json"
    say("profiling one core")
    if profiled(model, table, two_cores()[0], ["--quick"]).wait():
        raise RuntimeError("penstock profile failed")
    (model / "tokenizer_config.json").write_bytes((EMBEDDED_MODEL / "tokenizer_config.json").read_bytes())
    return Place(model, table, folder / "serve.log")


@contextmanager
def served(cell: Cell, bench: Bench) -> Iterator[tuple[str, str]]:
    """A fresh cluster: where it answers gRPC and HTTP."""
    logging = replace(cell.layout, flags=(*cell.layout.flags, "--request-log", "json"))
    with cluster(logging, bench.place, bench.ask.targets) as (address, _):
        yield address, _http_of(bench.place.log)


@contextmanager
def watched(url: str) -> Iterator[Watch]:
    """The server's counter, and processor time, over what is done inside. Every client is waited for by then."""
    watch, met, clients_s, machine_s, began = Watch(), _met(url), _clients_s(), _machine_s(), time.monotonic()
    yield watch
    seconds = time.monotonic() - began
    watch.num_met = _met(url) - met
    watch.client_share = (_clients_s() - clients_s) / seconds
    watch.machine_share = (_machine_s() - machine_s) / seconds / (os.cpu_count() or 1)


def run_aiperf(cell: Cell, bench: Bench, repeat: int) -> tuple[Counted, Workload, AiperfRun]:
    """AIPerf's own Poisson arrivals; and what it sent as a workload."""
    out = bench.folder / f"{cell.name}-{repeat}"
    num_requests = round(cell.rate_rps * bench.seconds)
    with served(cell, bench) as (_, url), watched(url) as watch:
        _ran(_aiperf_words(cell, bench, url, out, num_requests), bench.seconds)
    run, by_id = read_aiperf(out), served_by_id(bench.place.log.read_text())
    if len(run.requests) != num_requests:
        raise RuntimeError(f"AIPerf lists {len(run.requests)} requests instead of {num_requests}")
    workload = as_workload(run, by_id, bench.ask.answer)
    late = sorted(each.late_s for each in run.requests)
    counted = Counted(
        cell, AIPERF, repeat, num_requests, run.num_errors, run.num_good, watch.num_met, run.goodput_rps,
        workload.arrivals_s, run.duration_s, late[round(0.99 * (len(late) - 1))], watch.client_share,
        watch.machine_share, nearest(run, bench.ask.targets, NEAR), differences=differences(run, by_id),
    )  # fmt: skip
    return counted, workload, run


def run_penstock(cell: Cell, bench: Bench, repeat: int, workload: Workload) -> Counted:
    """Our client with the requests that AIPerf sent."""
    trace, report = bench.folder / "aiperf.jsonl", bench.folder / "penstock.json"
    write_trace(trace, workload)
    with served(cell, bench) as (address, url), watched(url) as watch:
        _ran(_penstock_words(address, bench, trace, report), bench.seconds, (0, 1))  # 1: some request was not answered
    found = json.loads(report.read_text())["figures"]
    return Counted(
        cell, PENSTOCK, repeat, found["requests"], found["refused"] + found["failed"] + found["expired"],
        round(found["attainment"] * found["requests"]), watch.num_met, found["goodput_rps"], found["arrivals_s"],
        found["duration_s"], found["client_late_s_p99"], watch.client_share, watch.machine_share,
    )  # fmt: skip


def run_cell(cell: Cell, bench: Bench, repeats: int) -> Iterator[Counted]:
    """Both arms in turn. Every run of ours has the requests of AIPerf's first run."""
    first, workload, original = run_aiperf(cell, bench, 0)
    yield first
    yield run_penstock(cell, bench, 0, workload)
    for repeat in range(1, repeats):
        for arm in alternated((AIPERF, PENSTOCK), repeat):
            if arm == PENSTOCK:
                yield run_penstock(cell, bench, repeat, workload)
            else:
                counted, _, run = run_aiperf(cell, bench, repeat)
                yield replace(counted, shift_s=largest_shift_s(original.requests, run.requests))


def _aiperf_words(cell: Cell, bench: Bench, url: str, out: Path, num_requests: int) -> list[str]:
    """Every request has a prompt of its own, so that none is found in the cache; tokens are counted by the server."""
    ask, model = bench.ask, bench.place.folder
    targets_ms = {"ttft_ms": 1000 * ask.targets.ttft_s, "tpot_ms": 1000 * ask.targets.tpot_s}
    extra = {"ignore_eos": True, "temperature": 0.0, "slo": targets_ms}
    goodput = f"time_to_first_token:{targets_ms['ttft_ms']:g} inter_token_latency:{targets_ms['tpot_ms']:g}"
    words = [bench.aiperf, "profile", "-m", model.name, "--tokenizer", str(model), "--url", url]
    words += ["--endpoint-type", "completions", "--streaming", "--use-server-token-count", "--goodput", goodput]
    words += ["--extra-inputs", json.dumps(extra), "--num-dataset-entries", str(num_requests)]
    words += ["--isl", str(ask.prompt), "--isl-stddev", str(ask.prompt_spread), "--osl", str(ask.answer)]
    words += ["--osl-stddev", "0", "--request-rate", f"{cell.rate_rps:g}", "--request-rate-mode", "poisson"]
    words += ["--request-count", str(num_requests), "--random-seed", str(bench.seed), "--artifact-dir", str(out)]
    return [*words, "--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--workers-max", "1"]


def _penstock_words(address: str, bench: Bench, trace: Path, report: Path) -> list[str]:
    words = [sys.executable, "-m", "cluster.cli", "bench", "serve", "--address", address, "--workload", str(trace)]
    targets = bench.ask.targets
    words += ["--seed", str(bench.seed), "--ttft-slo", str(targets.ttft_s), "--tpot-slo", str(targets.tpot_s)]
    return [*words, "--json", str(report)]


def _ran(words: Sequence[str], seconds: float, well: Sequence[int] = (0,)) -> None:
    """A client from its start to its end; AIPerf takes a tokenizer's folder only where it may look at the hub, too."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds + OUTLAST_S)
    if done.returncode not in well:
        raise RuntimeError(f"{words[:3]} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def _http_of(log: Path) -> str:
    """The HTTP interface's address, which is told a moment after gRPC's."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := OPENAI.search(log.read_text()):
            return found.group(1)
        time.sleep(0.05)
    raise RuntimeError(f"the cluster told no HTTP address:\n{log.read_text()}")


def _met(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return counter(answer.read().decode(), "penstock_goodput_requests_total")


def _clients_s() -> float:
    """Processor seconds of all processes that ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_s() -> float:
    """Processor seconds of everything on the machine, nodes that wait not among them."""
    words = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]))
    return (sum(words) - words[3] - words[4]) / TICKS_PER_S


def _write(args: argparse.Namespace, found: Sequence[Counted], version: str) -> None:
    """After every cell, so that a run that is ended early leaves what it finished."""
    if args.json:
        figures = {"aiperf_version": version} | figures_of(found)
        write_report(args.json, "python -m experiments.14-aiperf.run", figures, [sample_of(each) for each in found])


def main() -> None:
    """Run all cells, print, write."""
    args = arguments(__doc__, _add_flags)
    if args.seconds <= 0 or args.repeats < 1:
        raise ConfigError(["--seconds must be above 0 and --repeats at least 1"])
    if not args.aiperf:
        skip("everything: --aiperf PATH is the `aiperf` of an environment of its own; without it there is no other arm")
        return
    version = subprocess.run([args.aiperf, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    seconds, repeats = (15.0, 1) if args.quick else (args.seconds, args.repeats)
    ask = COMPUTED if args.computed else PACED
    cells = [Cell(layout, *pair) for layout, rates in ask.layouts for pair in zip(LEVELS, rates, strict=True)]
    cells = [cell for cell in cells if args.only in (None, cell.name)][: 1 if args.quick else None]
    if not cells:
        raise ConfigError([f"--only {args.only}: there is no such cell"])
    say(f"about {len(cells) * repeats * (2 * seconds + 45) / 60:.0f} minutes")
    found = list[Counted]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        place = computing_place(folder) if args.computed else paced_place(folder)
        bench = Bench(place, ask, args.aiperf, seconds, args.seed, folder)
        for cell in cells:
            for counted in run_cell(cell, bench, repeats):
                found.append(counted)
                say(sentence_of(counted))
            _write(args, found, version)
    for key, value in figures_of(found).items():
        print(f"{key} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--aiperf", metavar="PATH", default=None, help="the `aiperf` of its own environment")
    parser.add_argument("--seconds", type=float, default=25.0, metavar="S", help="in which the requests of a run come")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of both arms in each cell")
    parser.add_argument("--only", metavar="CELL", default=None, help="one cell, by its name in the figures")
    parser.add_argument("--computed", action="store_true", help="nodes that compute instead of waiting")
    parser.add_argument("--seed", type=int, default=1, help="of AIPerf's arrivals and prompts")


if __name__ == "__main__":
    main()
