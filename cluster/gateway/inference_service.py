"""The calls of `penstock.v1.InferenceService`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.access import Caller
from cluster.gateway.call_stream import write_call
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys_grpc import authorization_of
from cluster.gateway.messages import cluster_message, model_message, response_message
from cluster.gateway.rpc_border import Context, RpcHandler, translated
from cluster.gateway.sampling_checks import check_token_ids
from cluster.gateway.validation import check_model
from cluster.gateway.wire_parse import parse_message

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
MAX_ABORTS = 100
NOTES_KEY = "penstock-notes"
MANY_SCORES = 1000
"""From here on a prompt's logprobs are made into a message on a thread: the most that are told take 0.15 s."""

M = TypeVar("M", bound=Message)
Answer = Callable[[M, Caller], Awaitable[Message]]


class InferenceService:
    """Serves the gateway to gRPC. Messages arrive as bytes: what cannot be parsed gets an answer of ours, too."""

    def __init__(self, gateway: Gateway, state: StateProvider) -> None:
        self._gateway = gateway
        self._state = state

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to route calls here."""
        methods: dict[str, RpcHandler] = {
            "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            "GetCluster": self._plain(pb.GetClusterRequest, self._get_cluster),
            "Tokenize": self._plain(pb.TokenizeRequest, self._tokenize),
            "Detokenize": self._plain(pb.DetokenizeRequest, self._detokenize),
            "ListModels": self._plain(pb.ListModelsRequest, self._list_models),
            "GetModel": self._plain(pb.GetModelRequest, self._get_model),
            "Abort": self._plain(pb.AbortRequest, self._abort),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _plain(self, kind: type[M], answer: Answer[M]) -> RpcHandler:
        """A method of one message each way."""

        async def serve(data: bytes, context: Context) -> bytes:
            async with translated(context):
                caller = self._caller(context)
                message = parse_message(data, kind, self._gateway.limits.max_message_bytes)
                return (await answer(message, caller)).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(serve)

    def _caller(self, context: Context) -> Caller:
        """Who calls. Raises AccessDenied."""
        return self._gateway.access.caller(authorization_of(context.invocation_metadata()), time.time())

    async def _generate(self, data: bytes, context: Context) -> None:
        async with translated(context):
            caller = self._caller(context)
            message = parse_message(data, pb.GenerateRequest, self._gateway.limits.max_message_bytes)
            call = await self._gateway.submit(message, context.time_remaining(), caller)
            try:
                if call.notes:
                    await context.send_initial_metadata([(NOTES_KEY, note) for note in call.notes])
                await write_call(call, context, lambda chunk: _response(call.name, chunk))
            finally:
                self._gateway.leave(call)

    async def _get_cluster(self, message: pb.GetClusterRequest, caller: Caller) -> pb.GetClusterResponse:
        if not self._gateway.access.is_open:
            caller.check_admin()
        return cluster_message(self._gateway, self._state(), time.monotonic())

    async def _tokenize(self, message: pb.TokenizeRequest, caller: Caller) -> pb.TokenizeResponse:
        self._check_model(message.model, caller)
        if not message.text:
            raise FieldError("text", "a text must not be empty", "empty_prompt")
        tokenizer = self._gateway.tokenizer
        with self._gateway.counted(caller):
            token_ids = await self._gateway.token_ids(message.text, message.chat)
        return pb.TokenizeResponse(
            token_ids=token_ids,
            max_model_len=self._gateway.model.max_model_len,
            tokens=map(tokenizer.word, token_ids) if message.with_tokens else (),
        )

    async def _detokenize(self, message: pb.DetokenizeRequest, caller: Caller) -> pb.DetokenizeResponse:
        self._check_model(message.model, caller)
        model, num_ids = self._gateway.model, len(message.token_ids)
        if num_ids > model.max_model_len:
            problem = f"{num_ids} tokens exceed the context of {model.max_model_len}"
            raise FieldError("token_ids", problem, "context_length_exceeded")
        check_token_ids(tuple(message.token_ids), model.vocab_size, "token_ids")
        with self._gateway.counted(caller):
            text = await self._gateway.decode(list(message.token_ids))
        return pb.DetokenizeResponse(text=text)

    async def _list_models(self, message: pb.ListModelsRequest, caller: Caller) -> pb.ListModelsResponse:
        may_use = caller.may_use(self._gateway.model.name)
        return pb.ListModelsResponse(models=[model_message(self._gateway)] if may_use else [])

    async def _get_model(self, message: pb.GetModelRequest, caller: Caller) -> pb.GetModelResponse:
        self._check_model(message.name, caller, "name")
        return pb.GetModelResponse(model=model_message(self._gateway))

    async def _abort(self, message: pb.AbortRequest, caller: Caller) -> pb.AbortResponse:
        names = tuple(dict.fromkeys(message.request_ids))
        if not 0 < len(names) <= MAX_ABORTS or "" in names:
            problem = f"must be 1 to {MAX_ABORTS} names, none of them empty; there are {len(names)}"
            raise FieldError("request_ids", problem, "invalid_request_id")
        return pb.AbortResponse(num_aborted=sum(self._gateway.abort(name, caller) for name in names))

    def _check_model(self, name: str, caller: Caller, field: str = "model") -> None:
        check_model(name, self._gateway.model, field)
        caller.check_model(self._gateway.model.name)


async def _response(name: str, chunk: Chunk) -> tuple[bytes, ...]:
    if not chunk.token_ids and chunk.finish is None:
        return ()
    if len(chunk.prompt_logprobs) < MANY_SCORES:
        return (response_message(name, chunk).SerializeToString(),)
    return (await asyncio.to_thread(lambda: response_message(name, chunk).SerializeToString()),)
