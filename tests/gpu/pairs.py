"""Requests through a pair of nodes, one in a process of its own; the other, and who routes between them, in ours."""

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from core.events import AttemptEnd, AttemptFinished, Event, Submitted, TokensEmitted
from core.ids import SCHEDULER, AttemptId, GatewayId, NodeId, RequestId
from core.kv import block_keys, tail_key
from core.request import Prompt, Request, SamplingParams, pack_tokens
from tests.gpu.pair_node import OtherNode, PairNode, Wanted, memory_of

PREFILL, DECODE = NodeId("prefill-0@1"), NodeId("decode-0@1")
GATEWAY = GatewayId("gateway")


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it: by which transport KV moved and how much, what was counted, and all answers."""

    transport: str | None
    num_bytes: int
    counts: dict[str, int]
    tokens: list[list[int]]


def answers_of_pair(
    folder: Path, dtype: str, device: str, prompts: list[list[int]], num_tokens: int, transport: str = "auto"
) -> Found:
    """One request for each prompt, greedy, one after the other; both nodes are idle in the end."""
    prefill = OtherNode(Wanted(PREFILL, "prefill", str(folder), dtype, device, transport))
    decode = PairNode(Wanted(DECODE, "decode", str(folder), dtype, device, transport), memory_of(device))
    try:
        assert prefill.pid != os.getpid()
        decode.links.bind(prefill.offer)
        tokens = [_answer(prefill, decode, f"r{i}", ids, num_tokens) for i, ids in enumerate(prompts)]
        assert decode.machine.is_idle()
        return Found(decode.links.way_to(PREFILL), decode.num_bytes, decode.links.counts(), tokens)
    finally:
        said = prefill.close()
        decode.close()
        assert said == "idle"


def _answer(prefill: OtherNode, decode: PairNode, name: str, ids: list[int], num_tokens: int) -> list[int]:
    packed, attempt = pack_tokens(ids), AttemptId(f"{name}#0")
    asked = Prompt(len(ids), block_keys(packed, 16), tail_key(packed, 16))
    request = Request(RequestId(name), asked, packed, SamplingParams(num_tokens, temperature=0.0, ignore_eos=True))
    on_way: deque[tuple[str, Event]] = deque([(PREFILL, Submitted(attempt, request, b"", GATEWAY, DECODE, 0.0))])
    told: list[int] = []
    end = None
    while on_way:
        to, event = on_way.popleft()
        if to in (PREFILL, DECODE):
            node = prefill if to == PREFILL else decode
            on_way.extend(node.take([event]))  # type: ignore[list-item]
        elif isinstance(event, TokensEmitted):
            assert event.indices[0] == len(told)
            told += event.token_ids
        elif to == SCHEDULER and isinstance(event, AttemptFinished) and event.end is not AttemptEnd.HANDED_OFF:
            end = event.end
    assert end is AttemptEnd.FINISHED
    return told
