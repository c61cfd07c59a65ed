"""Our values as messages of the public interface."""

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import CallEnd, RequestLedger
from core.ids import node_name
from core.mix import Mix
from core.stats import BlockCounts
from core.step import TokenLogprobs


def response_message(name: str, chunk: Chunk) -> pb.GenerateResponse:
    """A chunk for the client; the end's figures where it brings the end."""
    response = pb.GenerateResponse(
        request_id=name,
        index=chunk.index,
        token_ids=chunk.token_ids,
        text=chunk.text,
        finish_reason=chunk.finish.value if chunk.finish else "",
        choice=chunk.choice,
        stop_reason=chunk.stop,
        logprobs=map(_scores, chunk.logprobs),
        prompt_logprobs=map(_scores, chunk.prompt_logprobs),
    )
    if chunk.ended is not None and chunk.ended.error is None:
        response.usage.CopyFrom(_usage(chunk.ended))
        response.timing.CopyFrom(_timing(chunk.ended.slowest))
    return response


def _scores(scores: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=scores.logprob,
        rank=scores.rank,
        top_token_ids=scores.top_ids,
        top_logprobs=scores.top_logprobs,
    )


def cluster_message(gateway: Gateway, state: ClusterState) -> pb.GetClusterResponse:
    """The whole cluster as it is now."""
    model = gateway.model
    counts = gateway.streams.counts
    own = (
        ("gateway_open_streams", gateway.streams.num_open),
        ("gateway_dropped_tokens", counts.dropped),
        ("gateway_lost_logs", counts.lost_logs),
    )
    return pb.GetClusterResponse(
        model=pb.Model(
            name=model.name,
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            block_size=model.block_size,
        ),
        nodes=[_node(node) for node in state.nodes],
        requests=[_ledger(ledger) for ledger in gateway.ledgers],
        counters=[pb.Counter(name=name, value=value) for name, value in (*own, *state.counters)],
        serving=state.can_serve,
    )


def _node(node: NodeState) -> pb.Node:
    message = pb.Node(
        id=node.id,
        name=node_name(node.id),
        incarnation=node.id.partition("@")[2],
        pid=node.pid,
        actor_id=node.actor_id,
        role=node.mix.role,
        mix=_mix(node.mix),
        kv_bytes_received=node.kv_bytes_received,
        num_fetches=node.num_fetches,
        kv_links=[pb.KVLink(peer=it.peer, transport=it.transport, why=it.why) for it in node.transfers.links],
        kv_counters=[pb.Counter(name=name, value=value) for name, value in node.transfers.counts],
    )
    if node.stats is not None:
        message.blocks.CopyFrom(_blocks(node.stats.blocks))
        message.running_rows = node.stats.running_rows
        message.queued_tokens = node.stats.queued_tokens
        message.leases = node.stats.leases
        message.num_steps = node.stats.num_steps
    return message


def _mix(mix: Mix) -> pb.Mix:
    return pb.Mix(
        accepts_prefill=mix.accepts_prefill,
        accepts_decode=mix.accepts_decode,
        prefill_tokens_per_step=mix.prefill_tokens_per_step,
        max_decode_rows=mix.max_decode_rows,
        epoch=mix.epoch,
    )


def _blocks(blocks: BlockCounts) -> pb.Blocks:
    return pb.Blocks(
        capacity=blocks.capacity,
        free=blocks.free,
        cached=blocks.cached,
        filling=blocks.filling,
        sealed=blocks.sealed,
        reserved=blocks.reserved,
        receiving=blocks.receiving,
        in_use=blocks.in_use,
        quarantined=blocks.quarantined,
    )


def _ledger(ledger: RequestLedger) -> pb.RequestLedger:
    return pb.RequestLedger(
        id=ledger.id,
        outcome=ledger.outcome.value,
        code=ledger.code,
        usage=_usage(ledger),
        timing=_timing(ledger),
        ttft_s=ledger.ttft_s,
        last_token_s=ledger.last_token_s,
    )


def _usage(account: RequestLedger | CallEnd) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=account.num_prompt_tokens,
        completion_tokens=account.num_tokens,
        cached_tokens=account.num_cached_tokens,
    )


def _timing(ledger: RequestLedger) -> pb.Timing:
    timing = ledger.timing
    return pb.Timing(
        admit_s=timing.admit_s,
        queue_prefill_s=timing.queue_prefill_s,
        prefill_s=timing.prefill_s,
        reserve_s=timing.reserve_s,
        handoff_s=timing.handoff_s,
        queue_decode_s=timing.queue_decode_s,
        decode_s=timing.decode_s,
        wall_s=ledger.wall_s,
        unaccounted_s=ledger.unaccounted_s,
        num_attempts=ledger.num_attempts,
    )
