"""The engines' shared gRPC contract in our words, and our answers in its. There, zero often means absent."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from smg_grpc_proto import vllm_engine_pb2 as smg

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.errors_wire import FieldError
from core.step import TokenLogprobs

JSON_OBJECT = '{"type": "object"}'
_AS_THEY_ARE = (
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "top_p",
    "repetition_penalty",
    "top_k",
    "min_tokens",
    "n",
)
_WITH_PRESENCE = ("temperature", "max_tokens", "logprobs", "prompt_logprobs", "seed")
_NEUTRAL = (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0))
"""Said by name: there it is the caller who knows the model's own defaults, and sends them."""

_REFUSED_SAMPLING = {
    "structural_tag": "unsupported_parameter",
    "truncate_prompt_tokens": "unsupported_parameter",
}
_REFUSED = {
    "mm_inputs": "unsupported_content",
    "media_refs": "unsupported_content",
    "kv_transfer_params": "reserved_parameter",
    "kv_transfer_params_json": "reserved_parameter",
    "data_parallel_rank": "unsupported_parameter",
}


def our_request(message: smg.GenerateRequest) -> pb.GenerateRequest:
    """Raises FieldError for what is not served here, by its name."""
    for name, code in _REFUSED.items():
        if message.HasField(name):
            raise FieldError(name, "is not served here", code)
    if message.extra_mm_inputs:
        raise FieldError("extra_mm_inputs", "is not served here", "unsupported_content")
    request = pb.GenerateRequest(request_id=message.request_id, sampling=_sampling(message.sampling_params))
    if message.WhichOneof("input") == "tokenized":
        request.token_ids.ids.extend(message.tokenized.input_ids)
    else:
        request.text = message.text
    return request


def _sampling(params: smg.SamplingParams) -> pb.SamplingParams:
    for name, code in _REFUSED_SAMPLING.items():
        if params.HasField(name):
            raise FieldError(f"sampling_params.{name}", "is not served here", code)
    ours = pb.SamplingParams(
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logit_bias=params.logit_bias,
    )
    for name in _AS_THEY_ARE:
        if value := getattr(params, name):
            setattr(ours, name, value)
    for name in (*_WITH_PRESENCE, "json_schema", "regex", "grammar"):
        if params.HasField(name):
            setattr(ours, name, getattr(params, name))
    for name, neutral in _NEUTRAL:
        if not ours.HasField(name):
            setattr(ours, name, neutral)
    ours.choice.extend(params.choice.choices)
    if params.json_object:
        ours.json_schema = JSON_OBJECT
    return ours


@dataclass(slots=True)
class Answer:
    """One call's chunks as that contract tells them. Owns: what came of each choice so far."""

    is_streamed: bool
    prompt_ids: tuple[int, ...]
    _tokens: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _scores: defaultdict[int, list[TokenLogprobs]] = field(default_factory=lambda: defaultdict(list))
    _prompt_scores: tuple[TokenLogprobs, ...] = ()

    def messages(self, chunk: Chunk) -> Iterator[smg.GenerateResponse]:
        """What a chunk is there: tokens as they come where they are streamed, and each choice as a whole at its end."""
        self._prompt_scores = chunk.prompt_logprobs or self._prompt_scores
        if chunk.token_ids:
            self._tokens[chunk.choice] += chunk.token_ids
            self._scores[chunk.choice] += chunk.logprobs
            if self.is_streamed:
                yield smg.GenerateResponse(chunk=self._chunk(chunk))
        if chunk.finish is not None:
            yield smg.GenerateResponse(complete=self._complete(chunk))

    def _chunk(self, chunk: Chunk) -> smg.GenerateStreamChunk:
        return smg.GenerateStreamChunk(
            token_ids=chunk.token_ids,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=len(chunk.token_ids),
            output_logprobs=_output_scores(chunk.token_ids, chunk.logprobs),
            input_logprobs=self._input_scores(chunk.prompt_logprobs),
            index=chunk.choice,
        )

    def _complete(self, chunk: Chunk) -> smg.GenerateComplete:
        tokens, cached = self._tokens[chunk.choice], None
        if chunk.ended is not None:
            cached = chunk.ended.num_cached_tokens
        complete = smg.GenerateComplete(
            output_ids=tokens,
            finish_reason=chunk.finish.value if chunk.finish else "",
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=len(tokens),
            cached_tokens=cached or 0,
            output_logprobs=_output_scores(tokens, self._scores[chunk.choice]),
            input_logprobs=self._input_scores(self._prompt_scores),
            index=chunk.choice,
        )
        if chunk.stop:
            complete.matched_stop_str = chunk.stop
        return complete

    def _input_scores(self, scores: tuple[TokenLogprobs, ...]) -> smg.InputLogProbs | None:
        """The prompt's first token has no logprob."""
        if not scores:
            return None
        told = smg.InputLogProbs(token_ids=self.prompt_ids)
        told.token_logprobs.add()
        told.top_logprobs.add()
        for score in scores:
            told.token_logprobs.add(value=score.logprob)
            told.top_logprobs.append(_top(score))
        return told


def _output_scores(
    token_ids: tuple[int, ...] | list[int], scores: tuple[TokenLogprobs, ...] | list[TokenLogprobs]
) -> smg.OutputLogProbs | None:
    if not scores:
        return None
    logprobs = [score.logprob for score in scores]
    return smg.OutputLogProbs(token_logprobs=logprobs, token_ids=token_ids, top_logprobs=map(_top, scores))


def _top(score: TokenLogprobs) -> smg.TopLogProbs:
    return smg.TopLogProbs(values=score.top_logprobs, token_ids=score.top_ids)


def load_message(state: ClusterState, num_open: int, block_size: int) -> smg.SchedulerLoad:
    """The whole cluster as one engine: sums over its nodes' last reports."""
    stats = [node.stats for node in state.nodes if node.stats is not None]
    capacity = sum(it.blocks.capacity for it in stats)
    used = sum(it.blocks.capacity - it.blocks.free - it.blocks.cached for it in stats)
    running = min(num_open, sum(it.running_rows + it.prefilling for it in stats))
    num_prompt = sum(it.num_prompt_tokens for it in stats)
    return smg.SchedulerLoad(
        num_running_reqs=running,
        num_waiting_reqs=num_open - running,
        num_total_reqs=num_open,
        num_used_tokens=used * block_size,
        max_total_num_tokens=capacity * block_size,
        token_usage=used / capacity if capacity else 0.0,
        utilization=used / capacity if capacity else 0.0,
        cache_hit_rate=sum(it.num_cached_tokens for it in stats) / num_prompt if num_prompt else 0.0,
        max_running_requests=max_running(state),
        num_waiting_uncached_tokens=sum(it.queued_tokens for it in stats),
    )


def max_running(state: ClusterState) -> int:
    """Rows that can decode at once."""
    return sum(node.mix.max_decode_rows for node in state.nodes if node.mix.accepts_decode)
