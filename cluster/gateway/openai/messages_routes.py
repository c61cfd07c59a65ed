"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients ask."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.conversation import conversation
from cluster.gateway.openai.door import Door, caller_of, id_of, name_fields
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import read_model
from cluster.gateway.openai.json_body import Fields
from cluster.gateway.openai.messages_answer import MessageEvents, MessageHead, MessageWhole
from cluster.gateway.openai.messages_request import (
    CountRequest,
    MessagesRequest,
    chat_of,
    check_thinking,
    choice_of,
    functions_of,
)
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.sampling import asked_message, names_in, set_format
from cluster.gateway.openai.tool_calls import format_of, reader_of
from cluster.gateway.openai.tools import tool_use
from cluster.gateway.validation import check_model

NAMES = {
    "text": "messages",
    "prompt": "messages",
    "token_ids": "messages",
    "sampling.stop": "stop_sequences",
    "sampling.json_schema": "tools",
    "request_id": "x-request-id",
}


def messages_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["text"])
    gateway = door.gateway

    @router.post(
        "/v1/messages", summary="Answer a conversation", responses=ANSWERS, openapi_extra=body_of(MessagesRequest)
    )
    async def messages(request: Request) -> Response:
        """Anthropic's messages: text, tools and their results. Errors have that interface's shape."""
        asked = read_model(MessagesRequest, _served(await door.fields(request, FieldNames(NAMES))))
        name_fields(request, FieldNames(names_in(asked, NAMES)))
        check_thinking(asked.thinking)
        use = tool_use(functions_of(asked.tools), choice_of(asked.tool_choice))
        door.check_tools(use)
        message = asked_message(asked, request.headers, id_of(request))
        message.sampling.stop.extend(asked.stop_sequences or ())
        set_format(message.sampling, asked, use.schema)
        talk = conversation(chat_of(asked.messages, asked.system), use.functions)
        message.token_ids.ids.extend(await door.encode_chat(talk))
        written = format_of(door.config.tool_call_format, gateway.tokenizer.chat_template)
        is_single = asked.tool_choice is not None and bool(asked.tool_choice.disable_parallel_tool_use)
        reader = reader_of(use, written, is_single)

        def respond(calls: Calls) -> Response:
            name = f"msg_{calls.calls[0].requests[0]}"
            head = MessageHead(name, calls.model_name, len(message.token_ids.ids))
            if asked.stream:
                return door.stream(calls, MessageEvents(head, calls, reader))
            return door.answer(calls, MessageWhole(head, calls, reader))

        return await door.serve(request, [message], respond)

    @router.post(
        "/v1/messages/count_tokens",
        summary="Count a conversation's tokens",
        responses=ANSWERS,
        openapi_extra=body_of(CountRequest),
    )
    async def count_tokens(request: Request) -> Response:
        """As many as `/v1/messages` would take for the same conversation."""
        asked = read_model(CountRequest, _served(await door.fields(request, FieldNames(NAMES))))
        check_model(asked.model or "", gateway.model)
        caller_of(request).check_model(gateway.model.name)
        use = tool_use(functions_of(asked.tools), choice_of(asked.tool_choice))
        door.check_tools(use)
        with gateway.counted(caller_of(request)):
            talk = conversation(chat_of(asked.messages, asked.system), use.functions)
            return JSONResponse({"input_tokens": len(await door.encode_chat(talk))})

    return router


def _served(fields: Fields) -> Fields:
    """Without what means nothing here: there is one tier, and prefixes are always cached."""
    return {
        name: value
        for name, value in fields.items()
        if name not in ("service_tier", "cache_control") and not (name == "thinking" and value is None)
    }
