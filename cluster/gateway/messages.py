"""Our values as messages of the public interface."""

from importlib.metadata import version

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import CallEnd, RequestLedger
from core.decisions import Decision
from core.ids import node_name
from core.mix import Mix
from core.request import SLO
from core.stats import BlockCounts, NodeStats
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
        report = _slo_report(chunk.ended)
        if report is not None:
            response.slo.CopyFrom(report)
    return response


def _slo_report(ended: CallEnd) -> pb.SLOReport | None:
    """Of several choices the slowest first token and the slowest pace."""
    slo = ended.ledgers[0].slo
    if slo is None or ended.met is None:
        return None
    records = [ledger.record for ledger in ended.ledgers]
    return pb.SLOReport(
        met=ended.met,
        target=_slo(slo),
        ttft_s=max((it.ttft_s for it in records if it.ttft_s is not None), default=None),
        tpot_s=max((it.tpot_s for it in records if it.tpot_s is not None), default=None),
        slo_class=ended.ledgers[0].slo_class,
    )


def _slo(slo: SLO) -> pb.SLO:
    return pb.SLO(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s)


def _scores(scores: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=scores.logprob,
        rank=scores.rank,
        top_token_ids=scores.top_ids,
        top_logprobs=scores.top_logprobs,
    )


def cluster_message(gateway: Gateway, state: ClusterState, now: float) -> pb.GetClusterResponse:
    """The whole cluster as it is `now`, on the clock that decisions are made by."""
    counts = gateway.streams.counts
    own = (
        ("gateway_open_streams", gateway.streams.num_open),
        ("gateway_dropped_tokens", counts.dropped),
        ("gateway_lost_logs", counts.lost_logs),
    )
    return pb.GetClusterResponse(
        model=model_message(gateway),
        nodes=[_node(node) for node in state.nodes],
        requests=[_ledger(ledger) for ledger in gateway.ledgers],
        counters=[pb.Counter(name=name, value=value) for name, value in (*own, *state.counters)],
        serving=state.can_serve,
        draining=gateway.is_draining,
        version=version("penstock"),
        decisions=[decision_message(number, decision, now) for number, decision in state.decisions],
        wanted_nodes=state.wanted_nodes,
    )


def model_message(gateway: Gateway) -> pb.Model:
    """The model that is served."""
    model = gateway.model
    return pb.Model(
        name=model.name,
        vocab_size=model.vocab_size,
        max_model_len=model.max_model_len,
        block_size=model.block_size,
        can_chat=gateway.tokenizer.can_chat,
    )


def decision_message(number: int, decision: Decision, now: float) -> pb.Decision:
    """A decision, `now` on the clock that it was made by."""
    return pb.Decision(
        kind=decision.kind.value,
        reason=decision.reason,
        changes=[pb.MixChange(node=it.node, was=_mix(it.was), becomes=_mix(it.becomes)) for it in decision.steps],
        facts=[pb.Fact(name=fact.name, value=fact.value) for fact in decision.facts],
        goodput_before_rps=decision.goodput_before_rps,
        goodput_after_rps=decision.goodput_after_rps,
        age_s=max(0.0, now - decision.at),
        number=number,
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
        message.work.CopyFrom(_work(node.stats))
    return message


def _work(stats: NodeStats) -> pb.NodeWork:
    return pb.NodeWork(
        prefilling=stats.prefilling,
        incoming=stats.incoming,
        queued_offline_tokens=stats.queued_offline_tokens,
        last_step_s=stats.step_s,
        mix_epoch=stats.mix_epoch,
        busy_s=stats.busy_s,
        prompt_tokens=stats.num_prompt_tokens,
        cached_tokens=stats.num_cached_tokens,
        preempted_rows=stats.num_preempted,
        saved_rows=stats.num_saved,
        restored_rows=stats.num_restored,
        migrated_rows=stats.num_migrated,
        drafted_tokens=stats.num_drafted,
        accepted_tokens=stats.num_accepted,
    )


def _mix(mix: Mix) -> pb.Mix:
    return pb.Mix(
        accepts_prefill=mix.accepts_prefill,
        accepts_decode=mix.accepts_decode,
        prefill_tokens_per_step=mix.prefill_tokens_per_step,
        max_decode_rows=mix.max_decode_rows,
        epoch=mix.epoch,
        role=mix.role,
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
        slo=_slo(ledger.slo) if ledger.slo else None,
        met=ledger.met,
        slo_class=ledger.slo_class,
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
