"""Whole nodes on real executors, every family: whatever a node does with a row, its tokens are the reference's."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from core.events import AttemptEnd
from core.request import SamplingParams
from tests.engine.real_nodes import RealNodes, Setting
from tests.engine.test_model import prompt

pytestmark = pytest.mark.slow

Reference = Callable[[Path, Tensor, str], Tensor]

FAMILIES = (
    "llama, llama3",
    "llama, biases",
    "mistral, window",
    "qwen2, window",
    "qwen3",
    "gemma",
    "mixtral",
    "qwen3_moe",
)
SETTINGS = {
    "aggregated": Setting(),
    "aggregated, ahead of results": Setting(steps_in_flight=2),
    "prefill to decode": Setting(roles=("prefill", "decode")),
    "prefill to decode, with drafts": Setting(roles=("prefill", "decode"), drafts=3, steps_in_flight=2),
    "rows that move": Setting(roles=("prefill", "decode", "decode"), moves=True),
    "rows that move, with drafts": Setting(
        roles=("prefill", "decode", "decode"), moves=True, drafts=3, steps_in_flight=2
    ),
    "rows saved": Setting(num_blocks=30, saved_blocks=64),
    "rows saved, with drafts": Setting(num_blocks=30, saved_blocks=64, drafts=4, steps_in_flight=2),
}
NUM_TOKENS = 24


def prompts(seed: int) -> list[list[int]]:
    """Some that share a beginning, some that repeat themselves (drafts are found there), one of full blocks."""
    random, shared = Random(seed), prompt(11, seed)
    some = [[*shared, *prompt(random.randint(1, 9), 10 * seed + i)] for i in range(3)]
    repeating = prompt(6, seed + 50) * 3
    return [*some, repeating, shared + prompt(1, seed), prompt(16, seed + 60), shared]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_their_logprobs_are_those_of_the_reference(
    family: str, setting: str, make_folder: Callable[..., Path], reference: Reference
) -> None:
    folder, sampling = make_folder(family), SamplingParams(NUM_TOKENS, temperature=0.0, ignore_eos=True, logprobs=1)
    nodes, asked = RealNodes(folder, SETTINGS[setting]), prompts(len(family))
    try:
        attempts = [nodes.submit(f"r{i}", token_ids, sampling) for i, token_ids in enumerate(asked)]
        nodes.run_dry()
        for token_ids, attempt in zip(asked, attempts, strict=True):
            answer = nodes.answers[attempt]
            assert (answer.end, len(answer.token_ids)) == (AttemptEnd.FINISHED, NUM_TOKENS)
            expected = reference(folder, torch.tensor([token_ids + answer.token_ids[:-1]]), "float64")[0]
            scores = expected[len(token_ids) - 1 :].log_softmax(-1)
            assert answer.token_ids == scores.argmax(-1).tolist()
            found = [scored.logprob for scored in answer.logprobs if scored is not None]
            assert found == pytest.approx(scores.max(-1).values.tolist(), abs=1e-8)
        assert sum(nodes.answers[attempt].num_cached for attempt in attempts) > 0, "a shared beginning is computed once"
        _assert_happened(SETTINGS[setting], nodes)
    finally:
        nodes.close()


def _assert_happened(setting: Setting, nodes: RealNodes) -> None:
    stats = nodes.nodes[nodes.names[-1]].stats()
    if len(setting.roles) > 1:
        assert nodes.num_bytes > 0
    if setting.moves:
        assert all(nodes.nodes[name].stats().num_migrated > 2 for name in nodes.names[1:])
    if setting.saved_blocks:
        assert stats.num_saved == stats.num_restored > 0
    if setting.drafts:
        assert sum(node.stats().num_drafted for node in nodes.nodes.values()) > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_drawn_tokens_are_those_of_a_node_that_does_nothing_else(
    setting: str, make_folder: Callable[..., Path]
) -> None:
    folder, asked = make_folder("qwen3"), prompts(3)
    extras: tuple[dict[str, object], ...] = (
        {},
        {"top_k": 9},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 0.6, "logit_bias": ((5, 3.0), (9, -4.0)), "min_tokens": 4},
    )
    params = [
        SamplingParams(NUM_TOKENS, temperature=0.8, seed=i, ignore_eos=True, choice=i % 3, **extra)
        for i, extra in enumerate(extras)
    ]
    alone = []
    for token_ids, sampling in zip(asked, params, strict=True):
        single = RealNodes(folder, Setting(chunk=100))
        attempt = single.submit("alone", token_ids, sampling)
        single.run_dry()
        alone.append(single.answers[attempt].token_ids)
        single.close()
    nodes = RealNodes(folder, SETTINGS[setting])
    try:
        attempts = [nodes.submit(f"r{i}", *each) for i, each in enumerate(zip(asked, params, strict=True))]
        nodes.run_dry()
        assert [nodes.answers[attempt].token_ids for attempt in attempts] == alone
    finally:
        nodes.close()
