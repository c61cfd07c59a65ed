"""Chaos by seed: many small clusters with faults, each checked to the last token and the last block.

python -m cluster.simulated.chaos --seeds 10000 --json out/chaos.json     # goes on where FILE ends
python -m cluster.simulated.chaos --seeds 1 --start 4711                  # one seed again
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.simulated.cells import missing_cells, missing_faults
from cluster.simulated.checks import check_end
from cluster.simulated.report import Report, report_of
from cluster.simulated.scenario import Scenario, draw
from cluster.simulated.world import World
from core.request import SLO

FAULTS_S = 1.0
CALM_S = 40.0
"""Virtual seconds in which all must be quiet once nothing goes wrong any more; well below a request's deadline."""

SEEDS_PER_BATCH = 50
SLO_OF_CHAOS = SLO(ttft_s=0.5, tpot_s=0.05)


def run_seed(seed: int, draw: Callable[[int], Scenario] = draw) -> Report:
    """Run one seed, whose scenario `draw` makes, to its end. Raises AssertionError on the first violation."""
    world = World(draw(seed))
    world.run(FAULTS_S, CALM_S)
    check_end(world)
    return report_of(world, SLO_OF_CHAOS)


@dataclass(slots=True)
class Tally:
    """The sum of many seeds. `failures` maps a seed to what was wrong; `hits` are keyed `state × fault`."""

    num_seeds: int = 0
    num_requests: int = 0
    num_tokens: int = 0
    num_events: int = 0
    cpu_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        """Count one good seed."""
        self.num_requests += report.num_requests
        self.num_tokens += report.num_tokens
        self.num_events += report.num_events
        self.outcomes.update({str(outcome): count for outcome, count in report.outcomes.items()})
        self.faults.update({str(fault): count for fault, count in report.faults.items()})
        self.hits.update({f"{state} × {fault}": count for (state, fault), count in report.hits.items()})

    def merge(self, other: "Tally") -> None:
        """Add another sum to this one."""
        for name in ("num_seeds", "num_requests", "num_tokens", "num_events", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.faults.update(other.faults)
        self.hits.update(other.hits)
        self.failures.update(other.failures)

    def blind_spots(self) -> list[str]:
        """Classes of faults that did not happen, and states that were not met by what they should be."""
        return missing_faults(self.faults, self.num_seeds) + missing_cells(self.hits, self.num_seeds)

    def figures(self) -> dict[str, float]:
        """What stands in tables: counts of correctness, and the speed of this machine."""
        return {
            "seeds": self.num_seeds,
            "violations": len(self.failures),
            "requests": self.num_requests,
            "tokens": self.num_tokens,
            "events": self.num_events,
            "state_fault_cells_hit": len(self.hits),
            "state_fault_cells_missing": len(self.blind_spots()),
            "fewest_hits_of_a_cell": min(self.hits.values(), default=0),
            "seeds_per_second_per_core": round(self.num_seeds / self.cpu_s, 1) if self.cpu_s else 0.0,
        }


def run_batch(start: int, count: int, draw: Callable[[int], Scenario] = draw) -> Tally:
    """Run `count` seeds, whose scenarios `draw` makes; what fails is noted, not raised."""
    tally, began = Tally(), time.process_time()
    for seed in range(start, start + count):
        tally.num_seeds += 1
        try:
            tally.add(run_seed(seed, draw))
        except Exception as error:  # a seed that breaks in any way is a finding, and the next one is run
            tally.failures[seed] = f"{type(error).__name__}: {error}"
    tally.cpu_s = time.process_time() - began
    return tally


def replay_command(seed: int) -> str:
    """The command that runs a seed again."""
    return f"python -m cluster.simulated.chaos --seeds 1 --start {seed}"


def main() -> int:
    """Run seeds in two processes, print what was hit; 1 where a seed failed or a cell was never hit."""
    options = _parser().parse_args()
    tally = _load(options.json, options.start)
    for batch in _batches(options, tally.num_seeds):
        tally.merge(batch)
        _save(options.json, options.start, tally)
    _print(tally)
    return 1 if tally.failures or tally.blind_spots() else 0


def _batches(options: argparse.Namespace, num_done: int) -> Iterator[Tally]:
    end = options.start + options.seeds
    starts = range(options.start + num_done, end, SEEDS_PER_BATCH)
    counts = [min(SEEDS_PER_BATCH, end - start) for start in starts]
    if options.processes == 1 or len(counts) <= 1:
        yield from map(run_batch, starts, counts)
        return
    with ProcessPoolExecutor(options.processes) as pool:
        yield from pool.map(run_batch, starts, counts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.simulated.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds, those that FILE has included")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="results; a run goes on where it ends")
    return parser


def _load(path: Path | None, start: int) -> Tally:
    """What an earlier run from the same first seed has left, or nothing."""
    if path is None or not path.exists():
        return Tally()
    found = json.loads(path.read_text())
    if found["start"] != start:
        return Tally()
    tally = Tally(**found["tally"])
    tally.outcomes, tally.faults, tally.hits = Counter(tally.outcomes), Counter(tally.faults), Counter(tally.hits)
    tally.failures = {int(seed): why for seed, why in tally.failures.items()}
    return tally


def _save(path: Path | None, start: int, tally: Tally) -> None:
    if path is None:
        return
    fields = {name: getattr(tally, name) for name in Tally.__slots__}
    replays = {seed: replay_command(seed) for seed in tally.failures}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    written.write_text(
        json.dumps({"start": start, "figures": tally.figures(), "replays": replays, "tally": fields}, indent=1)
    )
    os.replace(written, path)


def _print(tally: Tally) -> None:
    for title, counts in (("outcomes", tally.outcomes), ("faults", tally.faults), ("state × fault", tally.hits)):
        print(f"{title}:")
        for name, count in sorted(counts.items()):
            print(f"  {count:>9,}  {name}")
    for cell in tally.blind_spots():
        print(f"NEVER HIT: {cell}")
    for seed, why in sorted(tally.failures.items()):
        print(f"FAILED seed {seed}: {why}\n  {replay_command(seed)}")
    print(json.dumps({"figures": tally.figures()}))


if __name__ == "__main__":
    raise SystemExit(main())
