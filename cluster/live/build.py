"""Makes the parts of one node from its order: memory, weights, transport and machine. The slow part of a start."""

from collections.abc import Callable

from cluster.costs import preemption_costs
from cluster.live.config import NodeSettings, check_transport
from cluster.live.host import NodeParts
from cluster.live.node_memory import NodeMemory, TakeMemory, take_memory
from cluster.live.orders import NodeOrder, mint_node_id, own_address_towards
from cluster.live.transports import Endpoint, open_links
from cluster.node import Node, NodeConfig
from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from core.kv import KVLayout, SlabShape
from core.mix import NodeSpec
from decode_worker.config import PreemptionCosts
from engine.executor import Executor
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, ModelInfo, read_model_info
from engine.profile import StepProbe, measure_recompute

Progress = Callable[[str, float], None]
"""Called with the phase of a start and its share done, 0 to 1."""


def build_node(order: NodeOrder, progress: Progress, take: TakeMemory = take_memory) -> NodeParts:
    """A node that is ready to run; `take` gives it its KV memory. Raises ConfigError with what has to be changed."""
    settings = order.settings
    progress("reading the model's headers", 0.0)
    model = read_model_info(settings.model, LoadFormat(settings.load_format))
    layout = model.kv_layout(settings.block_size, settings.dtype)
    check_transport(settings.transport, settings.device)
    spec = NodeSpec(
        layout=layout.id(model.digest),
        kv=layout,
        num_blocks=_num_blocks(settings, layout),
        max_model_len=_max_model_len(settings, model),
        mix=order.mix,
        costs=settings.step_costs,
    )
    node = mint_node_id(order.name)
    memory = take(settings, SlabShape(layout, spec.num_blocks), node, progress)
    slab = memory.slab
    try:
        executor = _load(settings, memory, progress)
        host = own_address_towards(order.head.address)
        at = Endpoint(node, spec.layout, slab, host, order.token.secret, memory.gpu)
        links = open_links(settings.transport, at)
    except BaseException:
        slab.close()
        raise
    machine = _machine(node, spec, model, order, _costs(settings, spec, executor))
    return NodeParts(node, spec, machine, executor, links, slab)


def _costs(settings: NodeSettings, spec: NodeSpec, executor: Executor) -> PreemptionCosts | None:
    """What decides between saving a row and computing it again: as told, or measured here, before any row is there."""
    if settings.costs is not None or settings.swap_space_bytes < spec.kv.bytes_per_block:
        return settings.costs
    probe = StepProbe(executor, spec.kv.block_size, spec.num_blocks, spec.max_model_len)
    return preemption_costs(measure_recompute(probe))


def _machine(node: NodeId, spec: NodeSpec, model: ModelInfo, order: NodeOrder, costs: PreemptionCosts | None) -> Node:
    settings = order.settings
    return Node(
        node,
        NodeConfig(
            layout=LayoutId(spec.layout),
            kv=spec.kv,
            num_blocks=spec.num_blocks,
            max_model_len=spec.max_model_len,
            eos_token_ids=model.eos_token_ids,
            mix=spec.mix,
            max_steps_in_flight=settings.max_steps_in_flight,
            timers=order.timers,
            max_draft_tokens=settings.num_speculative_tokens,
            max_saved_blocks=settings.swap_space_bytes // spec.kv.bytes_per_block,
            costs=costs,
        ),
    )


def _load(settings: NodeSettings, memory: NodeMemory, progress: Progress) -> Executor:
    config = ExecutorConfig(
        settings.model,
        settings.dtype,
        memory.device,
        LoadFormat(settings.load_format),
        settings.num_threads,
        settings.quantization,
    )
    progress("loading weights", 0.0)
    slab = memory.slab

    def loading(done: int, total: int) -> None:
        progress("loading weights", done / total)

    executor = load_executor(config, slab.buffer, slab.shape, loading, memory.digests)
    progress("warming up", 0.0)
    executor.warm_up()
    return executor


def _num_blocks(settings: NodeSettings, layout: KVLayout) -> int:
    if settings.num_kv_blocks is not None:
        if settings.num_kv_blocks < 1:
            raise ConfigError([f"num_kv_blocks must be at least 1, not {settings.num_kv_blocks}"])
        return settings.num_kv_blocks
    if settings.kv_cache_memory_bytes is None:
        raise ConfigError(["num_kv_blocks or kv_cache_memory_bytes must be given to a node"])
    fitting = settings.kv_cache_memory_bytes // layout.bytes_per_block
    if fitting < 1:
        limit = f"kv_cache_memory_bytes ({settings.kv_cache_memory_bytes})"
        raise ConfigError([f"{limit} must hold at least one block of {layout.bytes_per_block} bytes"])
    return fitting


def _max_model_len(settings: NodeSettings, model: ModelInfo) -> int:
    asked = settings.max_model_len
    if asked is None:
        return model.max_model_len
    if not 1 <= asked <= model.max_model_len:
        raise ConfigError([f"max_model_len must be from 1 to the model's {model.max_model_len}, not {asked}"])
    return asked
