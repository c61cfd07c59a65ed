"""POST /v1/responses, without anything kept between calls."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.conversation import conversation
from cluster.gateway.openai.door import Door, id_of, name_fields
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import read_model
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.responses_answer import ResponseEvents, ResponseHead, ResponseWhole
from cluster.gateway.openai.responses_request import (
    ResponsesRequest,
    functions_of,
    messages_of,
    refuse_kept,
    schema_of,
)
from cluster.gateway.openai.sampling import asked_message, names_in, set_format
from cluster.gateway.openai.tool_calls import format_of, reader_of
from cluster.gateway.openai.tools import tool_use

NAMES = {
    "text": "input",
    "prompt": "input",
    "messages": "input",
    "token_ids": "input",
    "sampling.json_schema": "text.format",
    "request_id": "x-request-id",
}


def responses_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["text"])

    @router.post("/v1/responses", summary="Answer an input", responses=ANSWERS, openapi_extra=body_of(ResponsesRequest))
    async def responses(request: Request) -> Response:
        """OpenAI's responses, as far as they need no memory: `previous_response_id` and `store` are refused."""
        asked = read_model(ResponsesRequest, refuse_kept(await door.fields(request, FieldNames(NAMES))))
        name_fields(request, FieldNames(names_in(asked, NAMES)))
        use = tool_use(functions_of(asked), asked.tool_choice)
        door.check_tools(use)
        message = asked_message(asked, request.headers, id_of(request))
        set_format(message.sampling, asked, use.schema or schema_of(asked))
        talk = conversation(messages_of(asked), use.functions)
        message.token_ids.ids.extend(await door.encode_chat(talk))
        written = format_of(door.config.tool_call_format, door.gateway.tokenizer.chat_template)
        reader = reader_of(use, written, asked.parallel_tool_calls is False)

        def respond(calls: Calls) -> Response:
            name = f"resp_{calls.calls[0].requests[0]}"
            head = ResponseHead(name, int(time.time()), calls.model_name, asked, message.sampling)
            if asked.stream:
                return door.stream(calls, ResponseEvents(head, calls, reader))
            return door.answer(calls, ResponseWhole(head, calls, reader))

        return await door.serve(request, [message], respond)

    return router
