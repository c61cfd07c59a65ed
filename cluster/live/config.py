"""What a live cluster is made of. Frozen; the command line's parser fills it in."""

from dataclasses import dataclass, field
from pathlib import Path

from core.costs import NodeCosts
from core.errors import ConfigError
from core.mix import Mix, mix_of
from core.timers import Timers
from decode_worker.config import PreemptionCosts
from kv_transfer.choose import check_asked

ONE_PROCESS = "both nodes in one process, and here each has its own"
NOT_OF_HOST_MEMORY = {
    "inproc": ONE_PROCESS,
    "cuda_ipc": "KV in device memory, and these nodes keep it in host memory",
    "nccl": "KV in device memory, and these nodes keep it in host memory",
}
NOT_OF_DEVICE_MEMORY = {
    "inproc": ONE_PROCESS,
    "shm": "KV in host memory, and these nodes keep it on their GPUs",
}
"""Transports that a live node cannot have, and what they need."""


def check_transport(asked: str, device: str = "cpu") -> None:
    """Raises ConfigError for a transport that there is not, or that nodes of this device cannot have."""
    check_asked(asked)
    lacking = NOT_OF_DEVICE_MEMORY if device.startswith("cuda") else NOT_OF_HOST_MEMORY
    if asked in lacking:
        raise ConfigError([f"transport: {asked} needs {lacking[asked]}"])


@dataclass(frozen=True, slots=True)
class NodeSlot:
    """A place for one node. Its incarnations come and go; `mix` is what each starts with.

    `device`: where each of them computes, such as `cuda:1` among the GPUs that the head sees; empty: where the
    cluster's settings say.
    """

    name: str
    mix: Mix
    device: str = ""

    @property
    def group(self) -> str:
        """What it has in common with its like: `prefill` of `prefill-0`. On Kubernetes a worker group."""
        return self.name.rpartition("-")[0]


def slots_of(
    prefill: int, decode: int, aggregated: int, prefill_tokens_per_step: int, max_decode_rows: int
) -> tuple[NodeSlot, ...]:
    """The slots of a layout such as 1 prefill and 1 decode node, named `prefill-0`, `decode-0`, `aggregated-0`, …"""
    counts = (("prefill", "prefill", prefill), ("decode", "decode", decode), ("aggregated", "mixed", aggregated))
    return tuple(
        NodeSlot(f"{word}-{i}", mix_of(role, prefill_tokens_per_step, max_decode_rows))
        for word, role, count in counts
        for i in range(count)
    )


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What every node of a cluster is made of.

    `num_kv_blocks` wins over `kv_cache_memory_bytes`; a service that is given neither takes what
    `memory_utilization` leaves (`cluster.kv_pool`) and tells every node the blocks. `max_model_len` None: the model's
    own. `costs` None: each node measures its own. `step_costs`: what the scheduler begins to predict with; None: it
    learns them from reports. `num_speculative_tokens`: drafts of a row in one step, 0 for none.
    `transport`: by what KV moves between nodes, as `kv_transfer.choose` names it; `auto`: the best of each pair.
    `swap_space_bytes`: host memory of each node for rows that are saved while others use their blocks.
    """

    model: Path
    dtype: str = "float32"
    load_format: str = "safetensors"
    device: str = "cpu"
    block_size: int = 16
    num_kv_blocks: int | None = None
    kv_cache_memory_bytes: int | None = None
    memory_utilization: float = 0.5
    max_model_len: int | None = None
    max_steps_in_flight: int = 1
    num_threads: int = 1
    transport: str = "auto"
    switch_interval_s: float = 0.0005
    costs: PreemptionCosts | None = None
    step_costs: NodeCosts | None = None
    quantization: str = "none"
    num_speculative_tokens: int = 0
    swap_space_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How nodes run as Ray actors. `address` None starts a Ray of our own on this machine.

    `on_gpus`: every node asks for a share of a GPU; `num_gpus`: those that a Ray of our own is told of. `is_spread`:
    each node goes where there is a place of its group, a custom resource of that name, and takes a whole GPU; otherwise
    all go to one host, where the best transport is.
    """

    address: str | None = None
    cpus_per_node: float = 0.5
    on_gpus: bool = False
    num_gpus: int = 0
    is_spread: bool = False
    object_store_bytes: int = 80 << 20
    start_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """A whole live cluster. `launcher` is `local` (processes) or `ray` (actors).

    `token_file`: gateways of other processes may join, with the cluster token that is kept there. `port` is where nodes
    and they find the head; 0: of the kernel's choice.
    """

    node: NodeSettings
    slots: tuple[NodeSlot, ...]
    launcher: str = "local"
    timers: Timers = field(default_factory=Timers)
    ray: RaySettings = field(default_factory=RaySettings)
    token_file: Path | None = None
    port: int = 0

    def problems(self) -> list[str]:
        """What is wrong with it; empty when it is sound."""
        found = self.timers.problems()
        try:
            check_transport(self.node.transport, self.node.device)
        except ConfigError as error:
            found += error.problems
        if self.launcher not in ("local", "ray"):
            found.append(f"launcher {self.launcher!r} is unknown; use 'local' or 'ray'")
        if not self.slots:
            found.append("a cluster needs at least one node; see --prefill, --decode and --aggregated")
        for ability in ("accepts_prefill", "accepts_decode"):
            if self.slots and not any(getattr(slot.mix, ability) for slot in self.slots):
                found.append(f"no node {ability.replace('_', ' ')}; add one, or an aggregated node")
        if len({slot.name for slot in self.slots}) < len(self.slots):
            found.append("two nodes have the same name")
        if not self.node.model.is_dir():
            found.append(
                f"model {str(self.node.model)!r} is not a folder; nothing is downloaded here: fetch one first, "
                "e.g. `hf download NAME --local-dir FOLDER`, and give FOLDER"
            )
        return found
