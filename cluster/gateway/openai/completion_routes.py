"""POST /v1/completions."""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.completion_answer import CompletionEvents, CompletionWhole, PromptTelling
from cluster.gateway.openai.door import Door, id_of
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import MAX_INT32, fit
from cluster.gateway.openai.head import new_head, wishes_of
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.prompts import PromptText, read_prompts
from cluster.gateway.openai.requests import CompletionRequest
from cluster.gateway.openai.sampling import asked_message, format_schema, set_format
from cluster.gateway.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for this endpoint, and vLLM's."""

NAMES = {
    "text": "prompt",
    "token_ids.ids": "prompt",
    "token_ids": "prompt",
    "sampling.json_schema": "response_format",
    "request_id": "x-request-id",
}


def completion_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["text"])

    @router.post(
        "/v1/completions", summary="Continue prompts", responses=ANSWERS, openapi_extra=body_of(CompletionRequest)
    )
    async def completions(request: Request) -> Response:
        """OpenAI's completions: a prompt may be a text, texts, token ids, or lists of token ids."""
        asked = await door.read(request, CompletionRequest, FieldNames(NAMES))
        prompts = read_prompts(asked.prompt)
        _check(asked)

        def respond(calls: Calls) -> Response:
            telling = _telling(asked, prompts, door.gateway.tokenizer)
            head = new_head("cmpl-", "text_completion", calls, wishes_of(asked, asked.logprobs is not None), door.texts)
            if asked.stream:
                return door.stream(calls, CompletionEvents(head, calls, telling.echoes))
            return door.answer(calls, CompletionWhole(head, calls, telling))

        return await door.serve(request, [_message(asked, prompt, request) for prompt in prompts], respond)

    return router


def _check(asked: CompletionRequest) -> None:
    """What cannot be told in a stream, or of several choices, is refused by name."""
    if asked.prompt_logprobs is not None and asked.stream:
        raise FieldError("prompt_logprobs", "is not told in a stream", "invalid_logprobs")
    if asked.echo and asked.logprobs is not None and (asked.stream or (asked.n or 1) > 1):
        raise FieldError("echo", "with logprobs is told for one choice, and not in a stream", "unsupported_parameter")


def _message(asked: CompletionRequest, prompt: PromptText, request: Request) -> GenerateRequest:
    message = asked_message(asked, request.headers, id_of(request))
    if prompt.text:
        message.text = prompt.text
    else:
        message.token_ids.ids.extend(prompt.token_ids)
    params = message.sampling
    if asked.max_tokens is None:
        params.max_tokens = max(DEFAULT_MAX_TOKENS, asked.min_tokens or 0)
    set_format(params, asked, format_schema(asked.response_format))
    if asked.logprobs is not None:
        params.logprobs = fit(asked.logprobs, MAX_INT32, "logprobs", "invalid_logprobs")
        if asked.echo:
            params.prompt_logprobs = params.logprobs
    return message


def _telling(asked: CompletionRequest, prompts: Sequence[PromptText], tokenizer: Tokenizer) -> PromptTelling:
    echoes = [it.text or tokenizer.decode(list(it.token_ids)) for it in prompts] if asked.echo else []
    return PromptTelling(tuple(echoes), asked.logprobs is not None, asked.prompt_logprobs is not None)
