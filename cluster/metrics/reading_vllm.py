"""The same facts by vLLM's names: one cluster is one engine."""

from collections import Counter
from collections.abc import Callable

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import GAP_BOUNDS_S
from cluster.metrics.histogram import Histogram, merged
from cluster.metrics.readings import Readings
from cluster.metrics.tally import E2E_BOUNDS_S, TTFT_BOUNDS_S, ClassTimes, RequestTally
from core.ids import NodeId
from core.stats import NodeStats

_OF_NODES: tuple[tuple[str, Callable[[NodeStats], int]], ...] = (
    ("vllm:num_preemptions", lambda each: each.num_preempted + each.num_saved),
    ("vllm:prefix_cache_queries", lambda each: each.num_prompt_tokens),
    ("vllm:prefix_cache_hits", lambda each: each.num_cached_tokens),
    ("vllm:spec_decode_num_draft_tokens", lambda each: each.num_drafted),
    ("vllm:spec_decode_num_accepted_tokens", lambda each: each.num_accepted),
)


class EngineCounts:
    """Sums over nodes that do not fall when a node dies. Owns: what those that are gone had counted when last seen."""

    def __init__(self) -> None:
        self._gone: Counter[str] = Counter()
        self._seen: dict[NodeId, NodeStats] = {}

    def see(self, state: ClusterState) -> None:
        """Take in what nodes say now."""
        there = {node.id: node.stats for node in state.nodes}
        for node in [node for node in self._seen if node not in there]:
            self._gone.update(_counts_of(self._seen.pop(node)))
        self._seen |= {node: stats for node, stats in there.items() if stats is not None}

    def sums(self) -> Counter[str]:
        """By metric."""
        found = Counter(self._gone)
        for stats in self._seen.values():
            found.update(_counts_of(stats))
        return found


def _counts_of(stats: NodeStats) -> dict[str, int]:
    return {name: number_of(stats) for name, number_of in _OF_NODES}


def read_vllm(into: Readings, gateway: Gateway, state: ClusterState, tally: RequestTally, counts: EngineCounts) -> None:
    """Everything of the subset."""
    _read_now(into, gateway, [node.stats for node in state.nodes if node.stats is not None])
    _read_counters(into, tally)
    for name, _ in _OF_NODES:
        into.put(name, counts.sums()[name])
    _read_times(into, tally)


def _read_now(into: Readings, gateway: Gateway, stats: list[NodeStats]) -> None:
    num_open, rows = gateway.streams.num_open, sum(each.running_rows for each in stats)
    running = min(num_open, rows)
    into.put("vllm:num_requests_running", running)
    into.put("vllm:num_requests_waiting", num_open - running)
    if capacity := sum(each.blocks.capacity for each in stats):
        unused = sum(each.blocks.free + each.blocks.cached for each in stats)
        into.put("vllm:kv_cache_usage_perc", (capacity - unused) / capacity)
        into.put("vllm:cache_config_info", 1, str(gateway.model.block_size), str(capacity))


def _read_counters(into: Readings, tally: RequestTally) -> None:
    into.put("vllm:prompt_tokens", tally.prompt_tokens.total())
    into.put("vllm:prompt_tokens_cached", tally.cached_tokens.total())
    into.put("vllm:generation_tokens", tally.generation_tokens.total())
    for reason in ("stop", "length"):
        into.put("vllm:request_success", tally.finishes[reason], reason)


def _read_times(into: Readings, tally: RequestTally) -> None:
    def put_merged(name: str, bounds: tuple[float, ...], of: Callable[[ClassTimes], Histogram]) -> None:
        into.put_histogram(name, merged(map(of, tally.classes.values()), bounds))

    put_merged("vllm:time_to_first_token_seconds", TTFT_BOUNDS_S, lambda times: times.ttft)
    put_merged("vllm:inter_token_latency_seconds", GAP_BOUNDS_S, lambda times: times.itl)
    put_merged("vllm:request_time_per_output_token_seconds", GAP_BOUNDS_S, lambda times: times.tpot)
    put_merged("vllm:e2e_request_latency_seconds", E2E_BOUNDS_S, lambda times: times.e2e)
    for name, histogram in (
        ("vllm:request_queue_time_seconds", tally.queued),
        ("vllm:request_prefill_time_seconds", tally.prefill),
        ("vllm:request_decode_time_seconds", tally.after_prefill),
        ("vllm:request_inference_time_seconds", tally.inference),
        ("vllm:request_prompt_tokens", tally.prompt_sizes),
        ("vllm:request_generation_tokens", tally.answer_sizes),
    ):
        into.put_histogram(name, histogram)
