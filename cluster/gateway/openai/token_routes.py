"""POST /tokenize and /detokenize, in vLLM's shapes, also under /v1."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.conversation import conversation
from cluster.gateway.openai.door import Door, caller_of
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import MAX_INT64, fit
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.requests import DetokenizeRequest, TokenizeRequest
from cluster.gateway.openai.tools import tool_use
from cluster.gateway.sampling_checks import check_token_ids
from cluster.gateway.validation import check_model

DEFAULT = FieldNames({"text": "prompt"})


def token_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["tokens"])
    gateway = door.gateway

    def check(request: Request, name: str | None) -> None:
        check_model(name or "", gateway.model)
        caller_of(request).check_model(gateway.model.name)

    async def tokenize(request: Request) -> Response:
        """The token ids of a prompt, or of messages in the model's chat template."""
        asked = await door.read(request, TokenizeRequest, DEFAULT)
        check(request, asked.model)
        with gateway.counted(caller_of(request)):
            token_ids = await _token_ids(door, asked)
        body: dict[str, object] = {
            "count": len(token_ids),
            "max_model_len": gateway.model.max_model_len,
            "tokens": token_ids,
        }
        if asked.return_token_strs:
            body["token_strs"] = [gateway.tokenizer.word(token) for token in token_ids]
        return JSONResponse(body)

    async def detokenize(request: Request) -> Response:
        """The text of token ids; special tokens have none."""
        asked = await door.read(request, DetokenizeRequest, DEFAULT)
        check(request, asked.model)
        token_ids = [fit(token, MAX_INT64, "tokens", "invalid_token_id") for token in asked.tokens]
        if len(token_ids) > gateway.model.max_model_len:
            problem = f"{len(token_ids)} tokens exceed the context of {gateway.model.max_model_len}"
            raise FieldError("tokens", problem, "context_length_exceeded")
        check_token_ids(tuple(token_ids), gateway.model.vocab_size, "tokens")
        with gateway.counted(caller_of(request)):
            text = await gateway.decode(token_ids)
        return JSONResponse({"prompt": text})

    for path in ("/tokenize", "/v1/tokenize"):
        router.post(path, summary="Text to tokens", responses=ANSWERS, openapi_extra=body_of(TokenizeRequest))(tokenize)
    for path in ("/detokenize", "/v1/detokenize"):
        described = body_of(DetokenizeRequest)
        router.post(path, summary="Tokens to text", responses=ANSWERS, openapi_extra=described)(detokenize)
    return router


async def _token_ids(door: Door, asked: TokenizeRequest) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise FieldError("prompt", "give it, or messages, and not both", "invalid_request")
    if asked.prompt is not None:
        if not asked.prompt:
            raise FieldError("prompt", "must not be empty", "empty_prompt")
        return await door.gateway.encode(asked.prompt, is_bare=asked.add_special_tokens is False)
    if asked.add_special_tokens:
        raise FieldError("add_special_tokens", "a chat template writes its own", "unsupported_parameter")
    use = tool_use(tuple(tool.function for tool in asked.tools or ()), None)
    door.check_tools(use)
    talk = conversation(asked.messages, use.functions)
    if asked.add_generation_prompt is False:
        talk = type(talk)(talk.messages, talk.tools, is_open=False)
    return await door.encode_chat(talk)
