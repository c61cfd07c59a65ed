"""The bodies that clients send: chat completions, completions, tokenize and detokenize."""

from typing import Annotated

from pydantic import Field, WithJsonSchema

from cluster.gateway.openai.fields import MAX_INT32, AnyJson, Closed, Whole, ranged
from cluster.gateway.openai.sampling import Sampled
from cluster.gateway.openai.tools import Tool, ToolChoice

_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _CONTENT,
        "name": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
    },
    "required": ["role"],
    "additionalProperties": False,
}
Messages = Annotated[AnyJson, WithJsonSchema({"type": "array", "items": _MESSAGE, "minItems": 1})]

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS = [
    {"type": "string"},
    {"type": "array", "items": {"type": "string"}, "minItems": 1},
    _IDS,
    {"type": "array", "items": _IDS, "minItems": 1},
]
Prompts = Annotated[
    AnyJson,
    WithJsonSchema({"anyOf": _PROMPTS, "description": "A text, texts, token ids, or lists of token ids."}),
]


class ChatRequest(Sampled):
    """POST /v1/chat/completions"""

    messages: Messages
    max_completion_tokens: Whole | None = ranged("OpenAI's newer name of max_tokens; it wins.", 1, MAX_INT32)
    logprobs: bool | None = Field(None, description="Tell each token's log probability.")
    top_logprobs: Whole | None = ranged("0 to 20 of the best tokens beside each; needs logprobs.", 0, 20)
    tools: list[Tool] | None = Field(None, description="At most 128 functions that the model may call.")
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call is told.")


class CompletionRequest(Sampled):
    """POST /v1/completions"""

    prompt: Prompts
    echo: bool | None = Field(None, description="The prompt's text before the answer's.")
    logprobs: Whole | None = ranged("0 to 20 of the best tokens beside each.", 0, 20)


class TokenizeRequest(Closed):
    """POST /tokenize: a prompt, or messages in the model's chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = Field(None, description="Default: true for a prompt, false for messages.")
    add_generation_prompt: bool | None = Field(None, description="Messages end where the answer begins. Default true.")
    return_token_strs: bool | None = Field(None, description="Tell the tokens as the vocabulary writes them.")


class DetokenizeRequest(Closed):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[Whole]


class AbortRequest(Closed):
    """POST /abort_request"""

    request_id: str | None = Field(None, description="The x-request-id of the requests.")
    rid: str | None = Field(None, description="The same by SGLang's name.")
