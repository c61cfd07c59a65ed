"""What the experiments on a live cluster share: a random-weights model, two pinned nodes, load and account.

Run from the repository's root: `python -m experiments.06-live-goodput.run --json FILE`.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from cluster.api.v1 import inference_pb2 as pb
from cluster.bench.serve import Watched, request_of
from cluster.bench.serve_prompts import Prompts
from cluster.gateway.client import AsyncClient
from cluster.load import LoadSent, run_load
from cluster.service import EMBEDDED_MODEL
from cluster.workload.items import WorkItem, Workload
from core.errors import ConfigError
from core.request import SLO

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1280,
    "max_position_embeddings": 2048,
}
"""39 million parameters, 159 MB in float32: five times the last cache of a Xeon of 2 cores, and still a prompt of 450
tokens in 0.3 s and a decode step in 6 ms there (1.1 s and 20 ms on an EPYC without AVX-512). The vocabulary is that of
the embedded tokenizer."""

TINY = CONFIG | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 32}
"""What paced nodes compute."""

MAX_NUM_SEQS = 64
NUM_BLOCKS = 2000
BLOCK_SIZE = 16
LARGEST_CHUNK = 512
"""Of a node that only prefills, and the most that an adaptive one may be given."""

READY = re.compile(r"serving \S+ on (\S+);")
START_S, STOP_S = 120.0, 30.0
LOOK_S = 1.0
PACED_TABLE = "PACED_TABLE"
"""The environment's variable that names the table of paced nodes; `PENSTOCK_…` would be taken for an option."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model, its cost table and the log of the cluster under way are. `is_paced`: nodes compute next to
    nothing, and let every step last what the table says (`experiments.paced_node`)."""

    folder: Path
    table: Path
    log: Path
    is_paced: bool = False


@dataclass(frozen=True, slots=True)
class LiveArm:
    """A layout of two nodes as the flags of `penstock serve` say it."""

    name: str
    flags: tuple[str, ...]
    chunk: int = LARGEST_CHUNK

    def command(self, place: Place, slo: SLO) -> list[str]:
        """The whole command. Nodes are told measured costs, so that nothing has to be learned in the first seconds."""
        module = "experiments.paced_serve" if place.is_paced else "cluster.cli"
        words = [sys.executable, "-m", module, "serve", str(place.folder), "--launcher", "local", "--grpc-port", "0"]
        words += ["--load-format", "dummy", "--cost-table", str(place.table), "--max-num-seqs", str(MAX_NUM_SEQS)]
        words += ["--num-gpu-blocks-override", str(NUM_BLOCKS), "--block-size", str(BLOCK_SIZE)]
        words += ["--max-num-batched-tokens", str(self.chunk + MAX_NUM_SEQS)]
        return [*words, "--ttft-slo", str(slo.ttft_s), "--tpot-slo", str(slo.tpot_s), *self.flags]


def together(chunk: int) -> LiveArm:
    """Both nodes do both, by this chunk."""
    return LiveArm(f"aggregated {chunk}", ("--aggregated", "2"), chunk)


APART = LiveArm("1P + 1D", ("--prefill", "1", "--decode", "1"))
ADAPTIVE = LiveArm("adaptive", ("--aggregated", "2", "--controller", "on"))


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of processor time during a run: of each node by name, of scheduler, gateway and planner, of the client,
    and of everything else on the machine, the system's own work for them included."""

    nodes: tuple[tuple[str, float], ...]
    head_s: float
    client_s: float
    others_s: float


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One workload on one fresh cluster. `num_node_deaths`: nodes that went, or were taken for gone on a busy machine;
    where there are any, the run shows a recovery and not the layout."""

    sent: LoadSent
    watched: Watched
    spent: Spent
    num_node_deaths: int


def write_model(folder: Path, config: Mapping[str, object] = CONFIG) -> Path:
    """A folder with a model's shape and the embedded tokenizer; `--load-format dummy` draws its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copy(EMBEDDED_MODEL / "tokenizer.json", folder / "tokenizer.json")
    return folder


def two_cores() -> tuple[int, int]:
    """The cores that the nodes get, one each. Raises ConfigError where there are fewer."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError([f"two nodes need two cores, there is {len(cores)}"])
    return cores[0], cores[1]


def profiled(folder: Path, output: Path, core: int, extra: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """`penstock profile` of the model on one core, under way."""
    words = [sys.executable, "-m", "cluster.cli", "profile", str(folder), "--load-format", "dummy", "-o", str(output)]
    words += ["--block-size", str(BLOCK_SIZE), *extra]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    pin(process.pid, [core])
    return process


def pin(pid: int, cores: Sequence[int]) -> None:
    """All threads of a process onto these cores; threads that it starts later follow their parents."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


@contextmanager
def cluster(arm: LiveArm, place: Place, slo: SLO) -> Iterator[tuple[str, int]]:
    """A running `penstock serve`: its address and process id. Raises RuntimeError where it does not start."""
    environment = os.environ | ({PACED_TABLE: str(place.table)} if place.is_paced else {})
    with place.log.open("w") as output:
        process = subprocess.Popen(arm.command(place, slo), stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield _ready(process, place.log), process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        found = READY.search(log.read_text())
        if found:
            return found.group(1)
        time.sleep(0.05)
    raise RuntimeError(f"the cluster did not start:\n{log.read_text()}")


def run_live(arm: LiveArm, place: Place, workload: Workload, slo: SLO, draw: int) -> LiveRun:
    """One workload on a fresh cluster. `draw`: what the prompts' tokens are drawn from.

    Raises RuntimeError where nothing was answered.
    """
    with cluster(arm, place, slo) as (address, head):
        run = asyncio.run(_loaded(address, head, workload, slo, draw))
    if not any(record.ttft_s for record in run.sent.records):
        said = Counter(run.sent.errors).most_common(3)
        raise RuntimeError(f"{arm.name}: no request was answered: {said}; {place.log.read_text()}")
    return run


async def _loaded(address: str, head: int, workload: Workload, slo: SLO, draw: int) -> LiveRun:
    async with AsyncClient(address) as client:
        state = await client.get_cluster(timeout_s=10.0)
        pids = {node.name: node.pid for node in state.nodes}
        cores = _place_nodes(pids)
        prompts, watched = Prompts(draw, state.model.vocab_size, workload.block_tokens), Watched()
        with _pinned_to(cores[0]):
            before = _spent(pids, head)
            watched.look(state, 0.0)
            watching = asyncio.create_task(_watch(client, watched))

            def made(number: int, item: WorkItem) -> pb.GenerateRequest:
                return request_of(item, prompts.ids(number, item), item.slo or slo)

            sent = await run_load(client, workload, slo, made, timeout_s=120.0)
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            spent = _difference(before, _spent(pids, head))
            state = await client.get_cluster(timeout_s=10.0)
            watched.look(state, sent.duration_s)
            deaths = sum(counter.value for counter in state.counters if counter.name == "node_deaths")
            return LiveRun(sent, watched, spent, deaths)


@dataclass(frozen=True, slots=True)
class IdleTimes:
    """On a cluster that does nothing else: medians to the first token, and between tokens of rows of this context; and
    what scheduler, gateway and client took of a processor for each token."""

    prompt_tokens: int
    context: float
    first_s: float
    gap_s: float
    around_s: float


IDLE_PROMPT, IDLE_ANSWER, IDLE_REPEATS = 64, 160, 8


def idle_times(place: Place, num_rows: int) -> IdleTimes:
    """So many equal requests at once, again and again, on 1P + 1D."""
    slo = SLO(100.0, 100.0)
    with cluster(APART, place, slo) as (address, head):
        return asyncio.run(_idle_times(address, head, slo, num_rows))


def outcomes_of(run: LiveRun) -> dict[str, int]:
    """How many requests ended how, and the first words of why."""
    found = Counter(record.outcome.value for record in run.sent.records)
    return dict(found + Counter(error[:60] for error in run.sent.errors))


async def _idle_times(address: str, head: int, slo: SLO, num_rows: int) -> IdleTimes:
    firsts, gaps = list[float](), list[float]()
    async with AsyncClient(address) as client:
        state = await client.get_cluster(timeout_s=10.0)
        cores = _place_nodes(pids := {node.name: node.pid for node in state.nodes})
        prompts, item = Prompts(0, state.model.vocab_size, 512), WorkItem(0.0, IDLE_PROMPT, IDLE_ANSWER)
        with _pinned_to(cores[0]):
            before = _spent(pids, head)
            for repeat in range(IDLE_REPEATS):
                places = range(repeat * num_rows, (repeat + 1) * num_rows)
                asked = [request_of(item, prompts.ids(place, item), slo) for place in places]
                moments = await asyncio.gather(*(_moments(client, request) for request in asked))
                firsts += [each[0] for each in moments]
                for each in moments:  # neither those before all rows are there, nor those after the first has left
                    gaps += [b - a for a, b in pairwise(each[IDLE_ANSWER // 2 : -IDLE_ANSWER // 8])]
            spent = _difference(before, _spent(pids, head))
    around_s = (spent.head_s + spent.client_s) / (IDLE_REPEATS * num_rows * IDLE_ANSWER)
    context = IDLE_PROMPT + IDLE_ANSWER * (1 / 2 + 7 / 8) / 2
    return IdleTimes(IDLE_PROMPT, context, median(firsts), median(gaps), around_s)


async def _moments(client: AsyncClient, request: pb.GenerateRequest) -> list[float]:
    """Of each token, in seconds since the request was sent."""
    sent, found = time.monotonic(), list[float]()
    async for response in client.generate(request, 120.0):
        found += [time.monotonic() - sent] * len(response.token_ids)
    return found


def _place_nodes(pids: dict[str, int]) -> tuple[int, int]:
    """Each node onto a core of its own, a prefill node onto the first; the cores."""
    cores = two_cores()
    for core, name in zip(cores, sorted(pids, reverse=True), strict=True):
        pin(pids[name], [core])
    return cores


@contextmanager
def _pinned_to(core: int) -> Iterator[None]:
    """This process on one core for a while."""
    cores = sorted(os.sched_getaffinity(0))
    pin(os.getpid(), [core])
    try:
        yield
    finally:
        pin(os.getpid(), cores)


async def _watch(client: AsyncClient, watched: Watched) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S)
        watched.look(await client.get_cluster(timeout_s=10.0), time.monotonic() - started)


def _spent(pids: dict[str, int], head: int) -> Spent:
    used = resource.getrusage(resource.RUSAGE_SELF)
    client_s = used.ru_utime + used.ru_stime
    nodes = tuple((name, _tree_s(pid)) for name, pid in sorted(pids.items()))
    head_s = _tree_s(head) - sum(seconds for _, seconds in nodes)
    return Spent(nodes, head_s, client_s, _machine_s() - _tree_s(head) - client_s)


def _tree_s(root: int) -> float:
    """Processor seconds of a process, and of all that it started, while they run or once they were waited for."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            words = (place / "stat").read_text().rpartition(")")[2].split()
            pid = int(place.name)
            parents[pid], seconds[pid] = int(words[1]), sum(map(int, words[11:15])) / TICKS_PER_S
    if root not in parents:
        raise RuntimeError(f"process {root} of the cluster is gone")
    return sum(spent for pid, spent in seconds.items() if root in _ancestry(pid, parents))


def _ancestry(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        yield pid
        pid = parents[pid]


def _machine_s() -> float:
    """Processor seconds of everything: user, nice, system, interrupts; neither idle nor waiting nor stolen."""
    words = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]))
    return (sum(words) - words[3] - words[4]) / TICKS_PER_S


def _difference(before: Spent, after: Spent) -> Spent:
    nodes = tuple((name, end - start) for (name, start), (_, end) in zip(before.nodes, after.nodes, strict=True))
    return Spent(
        nodes,
        after.head_s - before.head_s,
        after.client_s - before.client_s,
        after.others_s - before.others_s,
    )
