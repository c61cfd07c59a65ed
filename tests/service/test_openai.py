"""The official client against a real service: two nodes, the embedded model, HTTP beside gRPC."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.api.v1 import inference_pb2 as pb
from tests.service.running import Running

MODEL = "penstock-embedded"
QUESTION = "What is a penstock?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Köln"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "level"],
    "additionalProperties": False,
}
README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def client(pair: Running) -> Iterator[openai.OpenAI]:
    """A client of the shared pair of nodes."""
    assert pair.service.http is not None
    with openai.OpenAI(base_url=f"{pair.service.http.url}/v1", api_key="none") as client:
        yield client


def test_http_and_grpc_give_the_same_answer(pair: Running, client: openai.OpenAI) -> None:
    params = pb.SamplingParams(max_tokens=40, temperature=0)
    told = pair.ask(pb.GenerateRequest(text=QUESTION, chat=True, sampling=params))
    asked = [{"role": "user", "content": QUESTION}]
    done = client.chat.completions.create(model=MODEL, messages=asked, max_tokens=40, temperature=0)  # type: ignore[call-overload]
    assert done.choices[0].message.content == told.text
    assert "water" in told.text
    stream = client.chat.completions.create(model=MODEL, messages=asked, max_tokens=40, temperature=0, stream=True)  # type: ignore[call-overload]
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == told.text
    assert len(chunks) == len(told.token_ids)
    pair.until_idle(2)


def test_prompts_sampled_with_a_seed_come_the_same_over_both(pair: Running, client: openai.OpenAI) -> None:
    params = pb.SamplingParams(max_tokens=30, seed=7)
    told = pair.ask(pb.GenerateRequest(text="Once upon a time", sampling=params)).text
    first = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=30, seed=7, n=2, logprobs=1)
    second = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=30, seed=7, n=2, logprobs=1)
    assert [it.text for it in first.choices] == [it.text for it in second.choices]
    assert first.choices[0].text != first.choices[1].text
    assert first.choices[0].text == told
    pair.until_idle(2)


def test_forty_streams_at_once_are_each_whole(pair: Running) -> None:
    assert pair.service.http is not None
    url = f"{pair.service.http.url}/v1"

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=f"Story {number}: once", max_tokens=24, seed=number, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            return await asyncio.gather(*(one(client, it) for it in range(40)))

    async def alone(number: int) -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            return await one(client, number)

    texts = asyncio.run(all_of_them())
    assert all(texts)
    assert asyncio.run(alone(7)) == texts[7]
    pair.until_idle(2)


def test_a_client_that_leaves_gives_its_blocks_back_on_both_nodes(pair: Running, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    for _, chunk in zip(range(5), stream, strict=False):
        assert chunk.choices[0].finish_reason is None
    stream.close()
    pair.until_idle(2)


def test_targets_out_of_reach_are_refused_at_once_and_not_tried_again(client: openai.OpenAI) -> None:
    for _ in range(3):  # a scheduler that has seen no step yet refuses nothing
        client.completions.create(model=MODEL, prompt="Once", max_tokens=9)
    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(
            model=MODEL, prompt="Once", max_tokens=9, extra_body={"slo": {"ttft_ms": 0.001, "tpot_ms": 0.001}}
        )
    assert refused.value.code == "slo_unattainable"
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_schema_and_a_forced_tool_are_kept_across_both_nodes(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Where?"}]
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}]
    for seed in range(5):
        fields: Any = {"model": MODEL, "messages": asked, "max_tokens": 120, "seed": seed}
        text = client.chat.completions.create(**fields, response_format=form).choices[0].message.content
        assert set(json.loads(text or "")) == {"city", "level"}
        for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
            stream = client.chat.completions.create(**fields, tools=tools, tool_choice=choice, stream=True)
            calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
            assert [call.function.name for call in calls if call.function.name] == ["look_up"] * (calls[-1].index + 1)
            first = "".join(call.function.arguments or "" for call in calls if call.index == 0)
            assert set(json.loads(first)) == {"city", "level"}


def test_the_readmes_client_prints_an_answer(pair: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair.service.http is not None
    (snippet,) = [
        it for it in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "import OpenAI" in it
    ]
    code = snippet.replace("http://127.0.0.1:8000", pair.service.http.url)
    assert code != snippet
    exec(code + "client.close()", {})
    assert "water" in capsys.readouterr().out


def test_a_lost_node_does_not_cut_a_stream(client: openai.OpenAI, pair: Running) -> None:
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0}
    whole = client.completions.create(**asked, extra_body={"ignore_eos": True}).choices[0].text  # type: ignore[call-overload]
    text = ""
    stream = client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})  # type: ignore[call-overload]
    for number, chunk in enumerate(stream):
        text += chunk.choices[0].text
        if number == 20:
            pair.kill("decode-0")
    assert text == whole
    pair.until_idle(2)


def test_a_requests_trace_and_the_load_are_told_of_real_nodes(client: openai.OpenAI, pair: Running) -> None:
    said = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=40)
    with httpx.Client(base_url=str(client.base_url).removesuffix("v1/"), trust_env=False, timeout=30) as plain:
        trace = plain.get(f"/trace/{said.id}").json()["traceEvents"]
        load = plain.get("/load").json()
        with plain.stream("GET", "/cluster/events") as events:
            assert "event: nodes" in (line for line in events.iter_lines() if line.startswith("event: "))
    places = {it["pid"]: it["args"]["name"] for it in trace if it["name"] == "process_name"}
    spans = {it["name"]: places[it["pid"]] for it in trace if it["ph"] == "X"}
    slots = {slot.name for slot in pair.service.operator.slots()}
    assert spans["admit"] == "gateway"
    assert {spans["prefill"], spans["decode"]} <= slots
    assert {node["node"] for node in load["nodes"]} == slots
    assert load["total"]["max_total_num_tokens"] == sum(node["max_total_num_tokens"] for node in load["nodes"])
