"""What `penstock tune` tries: layouts, chunk sizes and parallel sizes for so many GPUs, screened by closed forms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from cluster.cost_sources import NodeKind
from cluster.fleet_plan import Arm, Recipe
from cluster.workload.items import Workload
from core.request import SLO
from scheduler.closed_forms import Load, NodeAbility
from scheduler.plans import Forecaster, Goal, Part

NUM_LENGTHS = 32
"""Lengths of a workload are put into so many equally likely values for the closed forms."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to use the GPUs. `forecast_rps` is the rate that the closed forms give it."""

    recipe: Recipe
    arm: Arm
    forecast_rps: float = 0.0

    @property
    def num_gpus(self) -> int:
        """GPUs that it uses."""
        prefill = (self.recipe.prefill_kind or self.recipe.kind).num_gpus
        others = self.arm.num_decode + self.arm.num_mixed
        return self.arm.num_prefill * prefill + others * self.recipe.kind.num_gpus

    @property
    def layout(self) -> str:
        """As `--layout` takes it, which takes none where only some nodes are mixed."""
        if self.arm.adapts:
            return "adaptive"
        if self.arm.num_mixed == self.arm.num_nodes:
            return "aggregated"
        return str(self.arm) if self.arm.num_mixed else f"disaggregated:{self.arm.num_prefill}:{self.arm.num_decode}"

    @property
    def sizes(self) -> str:
        """GPUs of a node; of prefill and decode nodes where they differ."""
        prefill, kind = self.recipe.prefill_kind, self.recipe.kind
        if prefill is None or prefill.num_gpus == kind.num_gpus:
            return str(kind.num_gpus)
        return f"{prefill.num_gpus}+{kind.num_gpus}"

    def __str__(self) -> str:
        chunk = self.recipe.chunk if self.arm.num_mixed else self.recipe.prefill_chunk
        return f"{self.layout}, chunk {chunk}, {self.sizes} GPU a node"


def candidates(base: Recipe, kinds: Sequence[NodeKind], num_gpus: int, chunks: Sequence[int]) -> Iterator[Candidate]:
    """All aggregated ones, then all disaggregated ones that leave no GPU idle that could be a node."""
    for kind, chunk in product(kinds, chunks):
        if num_gpus >= kind.num_gpus:
            yield Candidate(replace(base, kind=kind, chunk=chunk), Arm(0, 0, num_gpus // kind.num_gpus))
    for prefill, decode in product(kinds, kinds):
        recipe = replace(base, kind=decode, prefill_kind=prefill)
        for num_prefill in range(1, num_gpus // prefill.num_gpus + 1):
            num_decode = (num_gpus - num_prefill * prefill.num_gpus) // decode.num_gpus
            if num_decode:
                yield Candidate(recipe, Arm(num_prefill, num_decode, 0))


def screened(found: Sequence[Candidate], workload: Workload, slo: SLO, keep: int) -> list[Candidate]:
    """All aggregated candidates, and the `keep` disaggregated ones that the closed forms rate highest per GPU."""
    load = load_of(workload)
    rated = [replace(each, forecast_rps=forecast_rps(each, load, slo)) for each in found]
    aggregated = [each for each in rated if each.arm.num_mixed]
    split = sorted((each for each in rated if not each.arm.num_mixed), key=lambda c: -c.forecast_rps / c.num_gpus)
    return aggregated + split[:keep]


def forecast_rps(candidate: Candidate, load: Load, slo: SLO) -> float:
    """Requests per second that go through both phases in time, by formula; 0 where none do."""
    recipe, arm = candidate.recipe, candidate.arm
    prompt_bytes = load.mean_prompt * recipe.kind.kv.bytes_per_token
    handoff_s = 0.0 if arm.num_mixed else recipe.links.latency_s + prompt_bytes / recipe.links.bytes_per_s
    if handoff_s >= slo.ttft_s:
        return 0.0
    prefill_kind = recipe.prefill_kind or recipe.kind
    parts = [
        Part("prefill", _ability(prefill_kind, recipe, recipe.prefill_chunk), recipe.prefill_chunk, arm.num_prefill),
        Part("decode", _ability(recipe.kind, recipe, recipe.chunk), recipe.chunk, arm.num_decode),
        Part("mixed", _ability(recipe.kind, recipe, recipe.chunk), recipe.chunk, arm.num_mixed),
    ]
    return Forecaster(load, Goal(slo, handoff_s=handoff_s)).sums([part for part in parts if part.num]).rate()


def load_of(workload: Workload) -> Load:
    """A workload as the closed forms take it."""
    prompts = sorted(item.prompt_tokens for item in workload.items)
    outputs = sorted(item.output_tokens for item in workload.items)
    return Load(workload.rate_rps or 1.0, _condensed(prompts), _condensed(outputs))


def _ability(kind: NodeKind, recipe: Recipe, chunk: int) -> NodeAbility:
    pool = kind.num_blocks * kind.kv.block_size
    return NodeAbility(kind.truth.belief(), pool, recipe.max_decode_rows, chunk)


def _condensed(ordered: Sequence[int]) -> tuple[int, ...]:
    if len(ordered) <= NUM_LENGTHS:
        return tuple(ordered)
    return tuple(ordered[int((place + 0.5) * len(ordered) / NUM_LENGTHS)] for place in range(NUM_LENGTHS))
