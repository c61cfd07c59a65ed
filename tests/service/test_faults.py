"""Nodes killed in mid-stream, mixes changed while busy, KV spoiled: the client gets the tokens it would have had."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.api.v1 import inference_pb2 as pb
from core.mix import mix_of
from engine.embedded.prompts import code_word_prompt
from kv_transfer.faults import SWITCH
from tests.service.running import Running, running

pytestmark = pytest.mark.slow

LONG = 800
"""Tokens of an answer that is still being written, on any machine, when a kill has come to its node."""


def question(tenant: str, max_tokens: int = 160) -> pb.GenerateRequest:
    """A long, sampled answer to a prompt of some 450 tokens. Another tenant shares no cached KV."""
    text, _ = code_word_prompt(5, 400)
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0.9, seed=42, ignore_eos=True)
    return pb.GenerateRequest(text=text, chat=True, sampling=sampling, tenant=tenant)


def once(number: int, act: Callable[[], object]) -> Callable[[int], None]:
    """Do something when `number` tokens have come."""
    done = False

    def on_token(num_tokens: int) -> None:
        nonlocal done
        if num_tokens >= number and not done:
            done = True
            act()

    return on_token


@pytest.mark.parametrize("slot", ["decode-0", "prefill-0"])
def test_a_stream_survives_the_kill_of_a_node_and_a_new_incarnation_joins(pair: Running, slot: str) -> None:
    calm = pair.ask(question(f"calm-{slot}", LONG))
    before = pair.nodes()
    hit = pair.ask(question(f"hit-{slot}", LONG), once(20, lambda: pair.kill(slot)))
    assert hit.token_ids == calm.token_ids
    assert len(hit.token_ids) == LONG == hit.last.usage.completion_tokens
    assert hit.last.timing.num_attempts == (2 if slot == "decode-0" else 1)
    pair.until_idle(2)
    after = pair.nodes()
    assert after[slot].node != before[slot].node
    pair.until(
        lambda: (
            {name: node.mix.role for name, node in pair.nodes().items()}
            == {"prefill-0": "prefill", "decode-0": "decode"}
        )
    )
    again = pair.ask(question(f"again-{slot}", LONG))
    assert again.token_ids == calm.token_ids


def test_requests_in_prefill_survive_the_kill_of_the_prefill_node(pair: Running) -> None:
    calm = pair.ask(question("calm-many", 24))
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(pair.ask, question(f"many-{i}", 24)) for i in range(12)]
        pair.until(lambda: (stats := pair.nodes()["prefill-0"].stats) is not None and stats.queued_tokens > 0)
        pair.kill("prefill-0")
        replies = [one.result() for one in asked]
    assert all(reply.token_ids == calm.token_ids for reply in replies)
    assert any(reply.last.timing.num_attempts > 1 for reply in replies), "the kill hit nothing"
    pair.until_idle(2)


def test_a_mix_change_in_mid_stream_changes_no_token(pair: Running) -> None:
    calm = pair.ask(question("mix-calm"))
    base = {slot: node.mix for slot, node in pair.nodes().items()}

    def change() -> None:
        swapped = {"prefill-0": mix_of("decode", 512, 64), "decode-0": mix_of("prefill", 512, 64)}
        pair.call(_set(pair, swapped))

    hit = pair.ask(question("mix-hit"), once(20, change))
    swapped = pair.ask(question("mix-after"))
    assert pair.nodes()["prefill-0"].mix.role == "decode"
    pair.call(_set(pair, base))
    assert hit.token_ids == swapped.token_ids == calm.token_ids
    pair.until_idle(2)


async def _set(pair: Running, mixes: dict[str, object]) -> None:
    pair.service.cluster.set_mixes(mixes)  # type: ignore[arg-type]


def test_a_byte_flipped_on_its_way_is_found_and_the_answer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with running("--prefill", "1", "--decode", "1") as spoiled:
        hit, calm = spoiled.ask(question("spoiled", 32)), spoiled.ask(question("calm", 32))
        assert hit.last.timing.num_attempts == 2
        assert hit.token_ids == calm.token_ids
        spoiled.until_idle(2)


def test_a_byte_flipped_behind_the_digest_changes_the_answer_so_the_comparison_can_fail(
    pair: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = pair.ask(question("unspoiled", 32))
    monkeypatch.setenv(SWITCH, "2")
    with running("--prefill", "1", "--decode", "1") as spoiled:
        hit = spoiled.ask(question("spoiled", 32))
        assert hit.token_ids != calm.token_ids
