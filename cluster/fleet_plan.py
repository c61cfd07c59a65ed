"""From an arm (`aggregated`, `disaggregated:P:D`, `adaptive`) and a kind of node to a fleet that can be simulated."""

from dataclasses import dataclass, field

from cluster.cost_sources import NodeKind
from cluster.simulated.fleet import Fleet, FleetNode
from cluster.simulated.shared_links import FleetLinks
from core.errors import ConfigError
from scheduler.config import SchedulerConfig

ARMS = "aggregated | disaggregated:P:D | adaptive"


@dataclass(frozen=True, slots=True)
class Arm:
    """Who does what at the start: nodes that only prefill, only decode, or do both.

    `adapts`: the controller is on; `replays`: its plans are corrected by replays of the last arrivals, as live.
    """

    num_prefill: int
    num_decode: int
    num_mixed: int
    adapts: bool = False
    replays: bool = False

    @property
    def num_nodes(self) -> int:
        """All nodes."""
        return self.num_prefill + self.num_decode + self.num_mixed

    def __str__(self) -> str:
        if self.adapts:
            return f"adaptive, {self.num_nodes} nodes"
        if self.num_mixed == self.num_nodes:
            return f"aggregated, {self.num_mixed} nodes"
        counts = ((self.num_prefill, "P"), (self.num_mixed, "M"), (self.num_decode, "D"))
        return " + ".join(f"{count}{letter}" for count, letter in counts if count)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all nodes of a fleet share. `prefill_kind` is that of prefill-only nodes where it differs."""

    kind: NodeKind
    links: FleetLinks
    max_model_len: int
    chunk: int = 2048
    prefill_chunk: int = 8192
    max_decode_rows: int = 256
    gpu_hour_price: float = 0.0
    policy: str = "goodput"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    prefill_kind: NodeKind | None = None


def arm_of(text: str, num_nodes: int | None) -> Arm:
    """The arm that a word names; `num_nodes` None: as the word says, else 2. Raises ConfigError."""
    kind, *counts = text.split(":")
    nodes = 2 if num_nodes is None else num_nodes
    if nodes < 1:
        raise ConfigError([f"--nodes must be at least 1, not {nodes}"])
    if kind == "aggregated" and not counts:
        return Arm(0, 0, nodes)
    if kind == "adaptive" and not counts:
        return Arm(0, 0, nodes, adapts=True)
    if kind == "disaggregated" and len(counts) == 2 and all(count.isdecimal() for count in counts):
        return _split(text, int(counts[0]), int(counts[1]), num_nodes)
    raise ConfigError([f"--layout is {ARMS}, not {text!r}"])


def _split(text: str, prefill: int, decode: int, num_nodes: int | None) -> Arm:
    if not prefill or not decode:
        missing = "prefills" if not prefill else "decodes"
        raise ConfigError([f"--layout {text}: no node {missing}, so no request could be answered"])
    if num_nodes is not None and num_nodes != prefill + decode:
        raise ConfigError([f"--layout {text} has {prefill + decode} nodes, --nodes says {num_nodes}"])
    return Arm(prefill, decode, 0)


def fleet_of(recipe: Recipe, arm: Arm) -> Fleet:
    """The fleet of an arm."""
    prefill = recipe.prefill_kind or recipe.kind
    nodes = [_node(recipe, prefill, "prefill", i, recipe.prefill_chunk) for i in range(arm.num_prefill)]
    nodes += [_node(recipe, recipe.kind, "decode", i, recipe.chunk) for i in range(arm.num_decode)]
    nodes += [_node(recipe, recipe.kind, "mixed", i, recipe.chunk) for i in range(arm.num_mixed)]
    return Fleet(
        nodes=tuple(nodes),
        kv=recipe.kind.kv,
        max_model_len=recipe.max_model_len,
        links=recipe.links,
        scheduler=recipe.scheduler,
        policy=recipe.policy,
    )


def _node(recipe: Recipe, kind: NodeKind, role: str, place: int, chunk: int) -> FleetNode:
    return FleetNode(
        name=f"{role}-{place}",
        role=role,
        truth=kind.truth,
        num_blocks=kind.num_blocks,
        prefill_tokens_per_step=chunk,
        max_decode_rows=recipe.max_decode_rows,
        num_gpus=kind.num_gpus,
        cost_per_hour=kind.num_gpus * recipe.gpu_hour_price,
        beside=kind.beside,
    )
