"""POST /v1/chat/completions."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.chat_answer import ChatEvents, ChatWhole
from cluster.gateway.openai.conversation import conversation
from cluster.gateway.openai.door import Door, id_of
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import MAX_INT32, fit
from cluster.gateway.openai.head import new_head, wishes_of
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.requests import ChatRequest
from cluster.gateway.openai.sampling import asked_message, format_schema, set_format
from cluster.gateway.openai.tool_calls import AnswerReader, format_of, reader_of
from cluster.gateway.openai.tools import ToolUse, tool_use

NAMES = {
    "text": "messages",
    "prompt": "messages",
    "token_ids": "messages",
    "sampling.logprobs": "top_logprobs",
    "sampling.json_schema": "response_format",
    "request_id": "x-request-id",
}


def chat_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["text"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses=ANSWERS,
        openapi_extra=body_of(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions, with vLLM's extra fields and Penstock's `slo`, `priority` and `deadline_ms`."""
        asked = await door.read(request, ChatRequest, FieldNames(NAMES))
        use = _tools(asked)
        door.check_tools(use)
        message = _message(asked, use, request)
        message.token_ids.ids.extend(await door.encode_chat(conversation(asked.messages, use.functions)))
        written = format_of(door.config.tool_call_format, door.gateway.tokenizer.chat_template)

        def new_reader() -> AnswerReader:
            return reader_of(use, written, asked.parallel_tool_calls is False)

        def respond(calls: Calls) -> Response:
            wishes = wishes_of(asked, bool(asked.logprobs))
            if asked.stream:
                head = new_head("chatcmpl-", "chat.completion.chunk", calls, wishes, door.texts)
                return door.stream(calls, ChatEvents(head, calls, new_reader))
            head = new_head("chatcmpl-", "chat.completion", calls, wishes, door.texts)
            return door.answer(calls, ChatWhole(head, calls, new_reader))

        return await door.serve(request, [message], respond)

    return router


def _tools(asked: ChatRequest) -> ToolUse:
    return tool_use(tuple(tool.function for tool in asked.tools or ()), asked.tool_choice)


def _message(asked: ChatRequest, use: ToolUse, request: Request) -> GenerateRequest:
    """All of the request but its prompt. Raises FieldError."""
    message = asked_message(asked, request.headers, id_of(request))
    schema = format_schema(asked.response_format)
    if use.schema is not None and schema is not None:
        raise FieldError("response_format", "cannot be met beside a forced tool", "invalid_request")
    set_format(message.sampling, asked, use.schema or schema)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise FieldError("top_logprobs", "needs logprobs: true", "invalid_logprobs")
    if asked.logprobs:
        message.sampling.logprobs = fit(asked.top_logprobs or 0, MAX_INT32, "top_logprobs", "invalid_logprobs")
    if asked.prompt_logprobs is not None and asked.stream:
        raise FieldError("prompt_logprobs", "is not told in a stream", "invalid_logprobs")
    return message
