"""Structured answers through two nodes: all are what was asked for, also where a node is killed."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import jsonschema
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient, CallFailed
from tests.service.running import GUARD_S, Running, running

pytestmark = pytest.mark.slow

NUM_REQUESTS = 1000
AT_ONCE = 24
MAX_TOKENS = 700
"""More than any of these answers can need, so that each ends by itself."""

GATE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "level": {"type": "integer", "minimum": 0, "maximum": 120},
        "state": {"enum": ["open", "shut", None]},
    },
    "required": ["name", "level", "state"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "part": {
            "type": "object",
            "properties": {
                "kind": {"const": "part"},
                "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
            },
            "required": ["kind", "code"],
            "additionalProperties": False,
        },
        "leaf": {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25}]},
    },
    "$ref": "#/$defs/part",
}
DAYS = {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 1, "maxItems": 2}


def is_valid(schema: object) -> Callable[[str], bool]:
    """By a validator that has nothing to do with how answers were made, formats included."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    return lambda text: validator.is_valid(json.loads(text))  # type: ignore[no-any-return]


def fits(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


KINDS: list[tuple[dict[str, object], Callable[[str], bool]]] = [
    ({"json_schema": json.dumps(GATE)}, is_valid(GATE)),
    ({"json_schema": json.dumps(TREE)}, is_valid(TREE)),
    ({"json_schema": json.dumps(DAYS)}, is_valid(DAYS)),
    ({"regex": r"[A-Z]{3,8}-[0-9]{3}"}, fits(r"[A-Z]{3,8}-[0-9]{3}")),
    (
        {"choice": ["the gate is open", "the gate is shut", "nobody knows"]},
        fits("the gate is (open|shut)|nobody knows"),
    ),
    (
        {"grammar": 'start: step ("\\n" step){1,3}\nstep: /[0-9]/ ". " ("open" | "shut") " the " /[a-z]{3,9}/'},
        fits(r"[0-9]\. (open|shut) the [a-z]{3,9}(\n[0-9]\. (open|shut) the [a-z]{3,9}){1,3}"),
    ),
    ({"grammar": 'root ::= "(" root ")" | "gate"'}, fits(r"\(*gate\)*")),
]


def request(number: int) -> pb.GenerateRequest:
    """One of every kind in turn: greedy, drawn, filtered, and two choices at once."""
    wanted, _ = KINDS[number % len(KINDS)]
    turn = number // len(KINDS) % 4
    extra: dict[str, object] = [{"temperature": 0.0}, {}, {"top_p": 0.9, "presence_penalty": 0.4}, {"n": 2}][turn]
    sampling = pb.SamplingParams(max_tokens=MAX_TOKENS, seed=number, **wanted, **extra)  # type: ignore[arg-type]
    return pb.GenerateRequest(text=f"Report gate {number}, please.", chat=True, sampling=sampling)


@dataclass
class Seen:
    """What came of all requests."""

    num_asked: int = 0
    num_tried_again: int = 0
    wrong: list[str] = field(default_factory=list)
    answers: dict[tuple[int, int], str] = field(default_factory=dict)


async def ask(client: AsyncClient, number: int, seen: Seen) -> None:
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    last = pb.GenerateResponse()
    async for last in client.generate(request(number), GUARD_S):
        texts[last.choice] = texts.get(last.choice, "") + last.text
        finishes[last.choice] = last.finish_reason
    seen.num_asked += 1
    seen.num_tried_again += last.timing.num_attempts > 1
    for choice, text in texts.items():
        seen.answers[number, choice] = text
        if finishes[choice] != "stop" or not KINDS[number % len(KINDS)][1](text):
            seen.wrong.append(f"{number}/{choice} ({finishes[choice]}): {text!r}")


async def ask_all(address: str, num_requests: int, on_ended: Callable[[int], None] = lambda number: None) -> Seen:
    seen, room = Seen(), asyncio.Semaphore(AT_ONCE)

    async def one(client: AsyncClient, number: int) -> None:
        async with room:
            await ask(client, number, seen)
            on_ended(seen.num_asked)

    async with AsyncClient(address) as client:
        await asyncio.gather(*[one(client, number) for number in range(num_requests)])
    return seen


def test_a_thousand_requests_get_valid_answers_while_nodes_are_killed_in_mid_run(pair: Running) -> None:
    """The prefill node only where the decode node is back by then: with none left, requests would wait."""
    kills = [("decode-0", NUM_REQUESTS // 5), ("prefill-0", NUM_REQUESTS // 2)]

    def kill(num_ended: int) -> None:
        if kills and num_ended >= kills[0][1] and len(pair.nodes()) == 2:
            pair.kill(kills.pop(0)[0])

    seen = asyncio.run(ask_all(pair.address, NUM_REQUESTS, kill))
    assert not seen.wrong
    assert seen.num_asked == NUM_REQUESTS
    assert len(kills) < 2
    assert seen.num_tried_again > 0, "the kills hit nothing"
    pair.until_idle(2)
    calm = asyncio.run(ask_all(pair.address, len(KINDS) * 4))
    assert calm.answers == {key: text for key, text in seen.answers.items() if key in calm.answers}


def test_all_answers_are_valid_where_rows_guess_their_next_tokens() -> None:
    with running("--prefill", "1", "--decode", "1", "--num-speculative-tokens", "4") as service:
        seen = asyncio.run(ask_all(service.address, 84))
        assert not seen.wrong
        assert seen.num_asked == 84
        service.until_idle(2)
        stats = service.nodes()["decode-0"].stats
        assert stats is not None and stats.num_accepted > 0


def refused(pair: Running, **wanted: object) -> CallFailed:
    asked = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(**wanted))  # type: ignore[arg-type]
    with pytest.raises(CallFailed) as failed:
        pair.ask(asked)
    return failed.value


def test_a_format_that_cannot_be_kept_is_refused_by_its_field_and_place_before_any_node_hears_of_it(
    pair: Running,
) -> None:
    kept = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    error = refused(pair, json_schema=json.dumps(kept))
    assert (error.code, error.field) == ("invalid_grammar", "sampling.json_schema")
    assert "uniqueItems (at /properties/a)" in str(error)
    error = refused(pair, grammar="start: gate")
    assert (error.code, error.field) == ("invalid_grammar", "sampling.grammar")
    assert "gate" in str(error)


def test_a_format_that_becomes_too_heavy_on_its_way_ends_its_own_answer_and_no_other(pair: Running) -> None:
    async def ask_both() -> tuple[CallFailed, Seen]:
        seen, heavy = Seen(), pb.SamplingParams(max_tokens=MAX_TOKENS, seed=1, regex="(.*a.{0,300}){50}")

        async def fail() -> CallFailed:
            asked = pb.GenerateRequest(text="Report gate 3.", chat=True, sampling=heavy)
            try:
                async for _ in client.generate(asked, GUARD_S):
                    pass
            except CallFailed as failed:
                return failed
            raise AssertionError("it was followed to its end")

        async with AsyncClient(pair.address) as client:
            failed, *_ = await asyncio.gather(fail(), *[ask(client, number, seen) for number in range(14)])
        return failed, seen

    before = {slot: node.node for slot, node in pair.nodes().items()}
    failed, seen = asyncio.run(ask_both())
    assert failed.code == "step_failed"
    assert seen.wrong == []
    assert seen.num_asked == 14
    pair.until_idle(2)
    assert {slot: node.node for slot, node in pair.nodes().items()} == before
