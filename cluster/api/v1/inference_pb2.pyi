from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "text", "token_ids", "chat", "sampling", "slo", "priority", "tenant", "deadline_ms", "slo_class", "cache_salt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    text: str
    token_ids: TokenIds
    chat: bool
    sampling: SamplingParams
    slo: SLO
    priority: int
    tenant: str
    deadline_ms: int
    slo_class: str
    cache_salt: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[bool] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., slo: _Optional[_Union[SLO, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., slo_class: _Optional[str] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "ignore_eos", "stop_token_ids", "n", "logprobs", "stop", "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "grammar", "json_schema", "prompt_logprobs", "regex", "choice")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    ignore_eos: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    n: int
    logprobs: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    min_tokens: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    grammar: str
    json_schema: str
    prompt_logprobs: int
    regex: str
    choice: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., n: _Optional[int] = ..., logprobs: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., min_tokens: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., grammar: _Optional[str] = ..., json_schema: _Optional[str] = ..., prompt_logprobs: _Optional[int] = ..., regex: _Optional[str] = ..., choice: _Optional[_Iterable[str]] = ...) -> None: ...

class SLO(_message.Message):
    __slots__ = ("ttft_s", "tpot_s")
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    ttft_s: float
    tpot_s: float
    def __init__(self, ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "index", "token_ids", "text", "finish_reason", "usage", "timing", "choice", "stop_reason", "logprobs", "prompt_logprobs", "slo")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    finish_reason: str
    usage: Usage
    timing: Timing
    choice: int
    stop_reason: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    slo: SLOReport
    def __init__(self, request_id: _Optional[str] = ..., index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., choice: _Optional[int] = ..., stop_reason: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., slo: _Optional[_Union[SLOReport, _Mapping]] = ...) -> None: ...

class SLOReport(_message.Message):
    __slots__ = ("met", "target", "ttft_s", "tpot_s", "slo_class")
    MET_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    met: bool
    target: SLO
    ttft_s: float
    tpot_s: float
    slo_class: str
    def __init__(self, met: _Optional[bool] = ..., target: _Optional[_Union[SLO, _Mapping]] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., slo_class: _Optional[str] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "rank", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    rank: int
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., rank: _Optional[int] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("admit_s", "queue_prefill_s", "prefill_s", "reserve_s", "handoff_s", "queue_decode_s", "decode_s", "wall_s", "unaccounted_s", "num_attempts")
    ADMIT_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    RESERVE_S_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DECODE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    UNACCOUNTED_S_FIELD_NUMBER: _ClassVar[int]
    NUM_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    admit_s: float
    queue_prefill_s: float
    prefill_s: float
    reserve_s: float
    handoff_s: float
    queue_decode_s: float
    decode_s: float
    wall_s: float
    unaccounted_s: float
    num_attempts: int
    def __init__(self, admit_s: _Optional[float] = ..., queue_prefill_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., reserve_s: _Optional[float] = ..., handoff_s: _Optional[float] = ..., queue_decode_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., wall_s: _Optional[float] = ..., unaccounted_s: _Optional[float] = ..., num_attempts: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text", "chat", "with_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    WITH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    chat: bool
    with_tokens: bool
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., chat: _Optional[bool] = ..., with_tokens: _Optional[bool] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "max_model_len", "tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_model_len: int
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., max_model_len: _Optional[int] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("model", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids",)
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("num_aborted",)
    NUM_ABORTED_FIELD_NUMBER: _ClassVar[int]
    num_aborted: int
    def __init__(self, num_aborted: _Optional[int] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("model", "nodes", "requests", "counters", "serving", "draining", "version", "decisions", "wanted_nodes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    WANTED_NODES_FIELD_NUMBER: _ClassVar[int]
    model: Model
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    requests: _containers.RepeatedCompositeFieldContainer[RequestLedger]
    counters: _containers.RepeatedCompositeFieldContainer[Counter]
    serving: bool
    draining: bool
    version: str
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    wanted_nodes: int
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[RequestLedger, _Mapping]]] = ..., counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., serving: _Optional[bool] = ..., draining: _Optional[bool] = ..., version: _Optional[str] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., wanted_nodes: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "vocab_size", "max_model_len", "block_size", "can_chat")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CAN_CHAT_FIELD_NUMBER: _ClassVar[int]
    name: str
    vocab_size: int
    max_model_len: int
    block_size: int
    can_chat: bool
    def __init__(self, name: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., block_size: _Optional[int] = ..., can_chat: _Optional[bool] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "name", "incarnation", "pid", "actor_id", "role", "mix", "blocks", "running_rows", "queued_tokens", "leases", "kv_bytes_received", "num_fetches", "num_steps", "kv_links", "kv_counters", "work")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MIX_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    NUM_FETCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    KV_LINKS_FIELD_NUMBER: _ClassVar[int]
    KV_COUNTERS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    incarnation: str
    pid: int
    actor_id: str
    role: str
    mix: Mix
    blocks: Blocks
    running_rows: int
    queued_tokens: int
    leases: int
    kv_bytes_received: int
    num_fetches: int
    num_steps: int
    kv_links: _containers.RepeatedCompositeFieldContainer[KVLink]
    kv_counters: _containers.RepeatedCompositeFieldContainer[Counter]
    work: NodeWork
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., incarnation: _Optional[str] = ..., pid: _Optional[int] = ..., actor_id: _Optional[str] = ..., role: _Optional[str] = ..., mix: _Optional[_Union[Mix, _Mapping]] = ..., blocks: _Optional[_Union[Blocks, _Mapping]] = ..., running_rows: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., leases: _Optional[int] = ..., kv_bytes_received: _Optional[int] = ..., num_fetches: _Optional[int] = ..., num_steps: _Optional[int] = ..., kv_links: _Optional[_Iterable[_Union[KVLink, _Mapping]]] = ..., kv_counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., work: _Optional[_Union[NodeWork, _Mapping]] = ...) -> None: ...

class NodeWork(_message.Message):
    __slots__ = ("prefilling", "incoming", "queued_offline_tokens", "last_step_s", "mix_epoch", "busy_s", "prompt_tokens", "cached_tokens", "preempted_rows", "saved_rows", "restored_rows", "migrated_rows", "drafted_tokens", "accepted_tokens")
    PREFILLING_FIELD_NUMBER: _ClassVar[int]
    INCOMING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_OFFLINE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_S_FIELD_NUMBER: _ClassVar[int]
    MIX_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SAVED_ROWS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MIGRATED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prefilling: int
    incoming: int
    queued_offline_tokens: int
    last_step_s: float
    mix_epoch: int
    busy_s: float
    prompt_tokens: int
    cached_tokens: int
    preempted_rows: int
    saved_rows: int
    restored_rows: int
    migrated_rows: int
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, prefilling: _Optional[int] = ..., incoming: _Optional[int] = ..., queued_offline_tokens: _Optional[int] = ..., last_step_s: _Optional[float] = ..., mix_epoch: _Optional[int] = ..., busy_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., preempted_rows: _Optional[int] = ..., saved_rows: _Optional[int] = ..., restored_rows: _Optional[int] = ..., migrated_rows: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class KVLink(_message.Message):
    __slots__ = ("peer", "transport", "why")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    transport: str
    why: str
    def __init__(self, peer: _Optional[str] = ..., transport: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Mix(_message.Message):
    __slots__ = ("accepts_prefill", "accepts_decode", "prefill_tokens_per_step", "max_decode_rows", "epoch", "role")
    ACCEPTS_PREFILL_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_DECODE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    accepts_prefill: bool
    accepts_decode: bool
    prefill_tokens_per_step: int
    max_decode_rows: int
    epoch: int
    role: str
    def __init__(self, accepts_prefill: _Optional[bool] = ..., accepts_decode: _Optional[bool] = ..., prefill_tokens_per_step: _Optional[int] = ..., max_decode_rows: _Optional[int] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class Blocks(_message.Message):
    __slots__ = ("capacity", "free", "cached", "filling", "sealed", "reserved", "receiving", "in_use", "quarantined")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    FILLING_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    free: int
    cached: int
    filling: int
    sealed: int
    reserved: int
    receiving: int
    in_use: int
    quarantined: int
    def __init__(self, capacity: _Optional[int] = ..., free: _Optional[int] = ..., cached: _Optional[int] = ..., filling: _Optional[int] = ..., sealed: _Optional[int] = ..., reserved: _Optional[int] = ..., receiving: _Optional[int] = ..., in_use: _Optional[int] = ..., quarantined: _Optional[int] = ...) -> None: ...

class RequestLedger(_message.Message):
    __slots__ = ("id", "outcome", "code", "usage", "timing", "ttft_s", "last_token_s", "slo", "met", "slo_class")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    LAST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    id: str
    outcome: str
    code: str
    usage: Usage
    timing: Timing
    ttft_s: float
    last_token_s: float
    slo: SLO
    met: bool
    slo_class: str
    def __init__(self, id: _Optional[str] = ..., outcome: _Optional[str] = ..., code: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., ttft_s: _Optional[float] = ..., last_token_s: _Optional[float] = ..., slo: _Optional[_Union[SLO, _Mapping]] = ..., met: _Optional[bool] = ..., slo_class: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("kind", "reason", "changes", "facts", "goodput_before_rps", "goodput_after_rps", "age_s", "number")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    GOODPUT_BEFORE_RPS_FIELD_NUMBER: _ClassVar[int]
    GOODPUT_AFTER_RPS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    reason: str
    changes: _containers.RepeatedCompositeFieldContainer[MixChange]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    goodput_before_rps: float
    goodput_after_rps: float
    age_s: float
    number: int
    def __init__(self, kind: _Optional[str] = ..., reason: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[MixChange, _Mapping]]] = ..., facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ..., goodput_before_rps: _Optional[float] = ..., goodput_after_rps: _Optional[float] = ..., age_s: _Optional[float] = ..., number: _Optional[int] = ...) -> None: ...

class MixChange(_message.Message):
    __slots__ = ("node", "was", "becomes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    BECOMES_FIELD_NUMBER: _ClassVar[int]
    node: str
    was: Mix
    becomes: Mix
    def __init__(self, node: _Optional[str] = ..., was: _Optional[_Union[Mix, _Mapping]] = ..., becomes: _Optional[_Union[Mix, _Mapping]] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
