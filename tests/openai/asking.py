"""Requests of the HTTP tests, and streams taken apart."""

import json
from collections.abc import Iterable
from typing import Any

import httpx
import openai

from tests.openai.serving import Place

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TEXT = "the fox für 漢字 😀"


def client_of(place: Place, **settings: Any) -> openai.AsyncOpenAI:
    """The official client, of the place's server; a context manager."""
    return openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="none", **settings)


def says(text: str) -> list[Any]:
    """One user message."""
    return [{"role": "user", "content": text}]


def events_of(text: str) -> list[str]:
    """What stands behind `data: ` in a stream; every event must be one line and end with an empty one."""
    assert text.endswith("\n\n")
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert all("\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]


def chunks_of(text: str) -> list[Any]:
    """A stream's events as objects; it must end with `[DONE]`."""
    *chunks, done = events_of(text)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def expected(place: Place, prompt: str, num_tokens: int, choice: int = 0) -> str:
    """What the fake nodes answer to a prompt."""
    ids = place.tokenizer.encode(prompt)
    return place.tokenizer.decode([ids[(index + choice) % len(ids)] for index in range(num_tokens)])


async def ask(place: Place, path: str, **fields: object) -> httpx.Response:
    """A request in plain HTTP."""
    return await place.client.post(path, json=fields)


def texts_of(chunks: Iterable[Any]) -> list[str]:
    """The texts of a chat's chunks."""
    return [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
