"""The prompts of a completions request, in all the forms that OpenAI's field has."""

from dataclasses import dataclass

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.fields import MAX_INT64

MAX_PROMPTS = 128


@dataclass(frozen=True, slots=True)
class PromptText:
    """One prompt: a text, or token ids; `field` is its place in the request."""

    field: str
    text: str = ""
    token_ids: tuple[int, ...] = ()


def read_prompts(value: object) -> tuple[PromptText, ...]:
    """A text, texts, token ids, or lists of token ids. Raises FieldError."""
    if isinstance(value, str):
        return (_text(value, "prompt"),)
    if not isinstance(value, list):
        raise FieldError("prompt", "must be a text, texts, token ids, or lists of token ids", "invalid_type")
    if not value:
        raise FieldError("prompt", "must not be empty", "empty_prompt")
    if _is_number(value[0]):
        return (_ids(value, "prompt"),)
    if len(value) > MAX_PROMPTS:
        raise FieldError("prompt", f"at most {MAX_PROMPTS} prompts, are {len(value)}", "invalid_request")
    read = _text if isinstance(value[0], str) else _ids
    return tuple(read(each, f"prompt[{index}]") for index, each in enumerate(value))


def _text(value: object, field: str) -> PromptText:
    if not isinstance(value, str):
        raise FieldError(field, "must be a text, as the first is", "invalid_type")
    if not value:
        raise FieldError(field, "must not be empty", "empty_prompt")
    return PromptText(field, text=value)


def _ids(value: object, field: str) -> PromptText:
    if not isinstance(value, list):
        raise FieldError(field, "must be a list of token ids", "invalid_type")
    if not value:
        raise FieldError(field, "must not be empty", "empty_prompt")
    if set(map(type, value)) != {int}:
        index = next(index for index, token in enumerate(value) if not _is_number(token))
        raise FieldError(f"{field}[{index}]", "must be a token id", "invalid_type")
    if max(value) > MAX_INT64 or min(value) < -MAX_INT64:
        index = next(index for index, token in enumerate(value) if abs(token) > MAX_INT64)
        raise FieldError(f"{field}[{index}]", "is far beyond the vocabulary", "invalid_token_id")
    return PromptText(field, token_ids=tuple(value))


def _is_number(value: object) -> bool:
    return type(value) is int
