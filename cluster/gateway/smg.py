"""The gRPC contract that vLLM's server shares with its gateways, served by the whole cluster as one engine.

Extra `smg`. What goes on between our nodes stays inside: KV transfer parameters and media are refused by name.
Source: smg-grpc-proto 0.4.28, vllm_engine.proto.
"""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from smg_grpc_proto import vllm_engine_pb2 as smg
from smg_grpc_proto.generated import common_pb2

from cluster.gateway.access import Caller
from cluster.gateway.call_stream import write_call
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys_grpc import authorization_of
from cluster.gateway.rpc_border import Context, RpcHandler, translated
from cluster.gateway.smg_messages import Answer, load_message, max_running, our_request
from cluster.gateway.wire_parse import parse_message
from core.errors import InvalidRequest
from core.request import unpack_tokens

SMG_SERVICE_NAME: str = smg.DESCRIPTOR.services_by_name["VllmEngine"].full_name
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
CHUNK_BYTES = 512 * 1024
SERVER_TYPE = "penstock"
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class SmgModel:
    """What that contract tells of a model beyond ours."""

    folder: Path
    family: str
    eos_token_ids: tuple[int, ...]
    dtype: str


class SmgService:
    """Serves the gateway by that contract. Owns: when it began, and when it was last asked."""

    def __init__(self, gateway: Gateway, state: StateProvider, model: SmgModel) -> None:
        self._gateway = gateway
        self._state = state
        self._model = model
        self._started_at = time.time()
        self._asked_at = self._started_at

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to route calls here; methods that are left out are refused by name."""
        methods: dict[str, RpcHandler] = {
            "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            "GetTokenizer": grpc.unary_stream_rpc_method_handler(self._get_tokenizer),
            "HealthCheck": self._plain(smg.HealthCheckRequest, self._health_check),
            "Abort": self._plain(smg.AbortRequest, self._abort),
            "GetModelInfo": self._plain(smg.GetModelInfoRequest, self._get_model_info),
            "GetServerInfo": self._plain(smg.GetServerInfoRequest, self._get_server_info),
            "GetLoads": self._plain(smg.GetLoadsRequest, self._get_loads),
            "FlushCache": self._plain(common_pb2.FlushCacheRequest, self._flush_cache),
            "StartProfile": self._plain(common_pb2.StartProfileRequest, self._profile),
            "StopProfile": self._plain(common_pb2.StopProfileRequest, self._profile),
        }
        return grpc.method_handlers_generic_handler(SMG_SERVICE_NAME, methods)

    def _plain(self, kind: type[M], answer: Callable[[M, Caller], Awaitable[Message]]) -> RpcHandler:
        async def serve(data: bytes, context: Context) -> bytes:
            async with translated(context):
                caller, message = self._read(data, kind, context)
                return (await answer(message, caller)).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(serve)

    def _read(self, data: bytes, kind: type[M], context: Context) -> tuple[Caller, M]:
        caller = self._gateway.access.caller(authorization_of(context.invocation_metadata()), time.time())
        return caller, parse_message(data, kind, self._gateway.limits.max_message_bytes)

    async def _generate(self, data: bytes, context: Context) -> None:
        async with translated(context):
            caller, message = self._read(data, smg.GenerateRequest, context)
            self._asked_at = time.time()
            call = await self._gateway.submit(our_request(message), context.time_remaining(), caller)
            answer = Answer(message.stream, unpack_tokens(call.request.token_ids))

            async def messages(chunk: Chunk) -> tuple[bytes, ...]:
                return tuple(told.SerializeToString() for told in answer.messages(chunk))

            try:
                await write_call(call, context, messages)
            finally:
                self._gateway.leave(call)

    async def _get_tokenizer(self, data: bytes, context: Context) -> None:
        async with translated(context):
            caller, _ = self._read(data, common_pb2.GetTokenizerRequest, context)
            caller.check_model(self._gateway.model.name)
            archive = tokenizer_archive(self._model.folder)
            digest = hashlib.sha256(archive).hexdigest()
            for place in range(0, len(archive), CHUNK_BYTES):
                is_last = place + CHUNK_BYTES >= len(archive)
                part = archive[place : place + CHUNK_BYTES]
                told = common_pb2.GetTokenizerChunk(data=part, sha256=digest if is_last else "")
                await context.write(told.SerializeToString())

    async def _health_check(self, message: smg.HealthCheckRequest, caller: Caller) -> smg.HealthCheckResponse:
        if self._gateway.is_draining:
            return smg.HealthCheckResponse(healthy=False, message="draining")
        can_serve = self._state().can_serve
        return smg.HealthCheckResponse(healthy=can_serve, message="" if can_serve else "no node for some phase")

    async def _abort(self, message: smg.AbortRequest, caller: Caller) -> smg.AbortResponse:
        for name in dict.fromkeys(message.request_ids):
            if not name:
                raise InvalidRequest("request_ids: must not be empty", code="invalid_request_id")
            self._gateway.abort(name, caller)
        return smg.AbortResponse()

    async def _get_model_info(self, message: smg.GetModelInfoRequest, caller: Caller) -> smg.GetModelInfoResponse:
        model = self._gateway.model
        return smg.GetModelInfoResponse(
            model_path=model.name,
            is_generation=True,
            max_context_length=model.max_model_len,
            vocab_size=model.vocab_size,
            served_model_name=model.name,
            tokenizer_path=model.name,
            model_type=self._model.family,
            eos_token_ids=self._model.eos_token_ids,
            max_req_input_len=model.max_model_len - 1,
            default_sampling_params_json=json.dumps(dict(model.defaults.said())),
        )

    async def _get_server_info(self, message: smg.GetServerInfoRequest, caller: Caller) -> smg.GetServerInfoResponse:
        return smg.GetServerInfoResponse(
            active_requests=self._gateway.streams.num_open,
            is_paused=self._gateway.is_draining,
            last_receive_timestamp=self._asked_at,
            uptime_seconds=time.time() - self._started_at,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype=self._model.dtype,
            block_size=self._gateway.model.block_size,
            model_dtype=self._model.dtype,
            max_num_seqs=max_running(self._state()),
        )

    async def _get_loads(self, message: smg.GetLoadsRequest, caller: Caller) -> smg.GetLoadsResponse:
        load = load_message(self._state(), self._gateway.streams.num_open, self._gateway.model.block_size)
        return smg.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(), version=version("penstock"), dp_rank_count=1, loads=[load]
        )

    async def _flush_cache(
        self, message: common_pb2.FlushCacheRequest, caller: Caller
    ) -> common_pb2.FlushCacheResponse:
        return common_pb2.FlushCacheResponse(success=False, message="cached KV is not flushed here; it ages out")

    async def _profile(self, message: Message, caller: Caller) -> common_pb2.ProfileResponse:
        return common_pb2.ProfileResponse(success=False, message="there is no profiler here")


def tokenizer_archive(folder: Path) -> bytes:
    """The tokenizer's files as a zip; equal files, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
