"""Batches of the HTTP tests: inputs, servers that keep batches, and what became of them."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.batches.config import BatchConfig
from cluster.gateway.openai.config import HttpConfig
from tests.openai.serving import Place, Setting

CHAT = "/v1/chat/completions"


def keeping(folder: Path, **limits: Any) -> Setting:
    """A server that keeps batches."""
    return Setting(config=HttpConfig(port=0, batches=BatchConfig(folder, **limits)))


def chat_line(number: int, **body: Any) -> dict[str, Any]:
    """A line that asks for a few tokens of a prompt of its own."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": f"the fox {number}"}], "max_tokens": 5} | body
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": asked}


def jsonl(lines: Iterable[object]) -> bytes:
    """As a file."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def upload(place: Place, data: bytes, key: str = "none") -> Any:
    """The upload's answer."""
    files = {"file": ("input.jsonl", data)}
    headers = {"authorization": f"Bearer {key}"}
    return await place.client.post("/v1/files", data={"purpose": "batch"}, files=files, headers=headers)


async def begin(place: Place, data: bytes, endpoint: str = CHAT, window: str = "24h", key: str = "none") -> Any:
    """A batch of this input, begun."""
    file = (await upload(place, data, key)).json()
    asked = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": window}
    answer = await place.client.post("/v1/batches", json=asked, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ended(place: Place, batch: Any, key: str = "none") -> Any:
    """The batch once it is over."""
    async with asyncio.timeout(20):
        while True:
            answer = await place.client.get(f"/v1/batches/{batch['id']}", headers={"authorization": f"Bearer {key}"})
            batch = answer.json()
            if batch["status"] in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.01)


async def lines_of(place: Place, name: str | None) -> list[Any]:
    """A result file's lines."""
    if name is None:
        return []
    answer = await place.client.get(f"/v1/files/{name}/content")
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]
