"""The embedded model repeats words it never saw from 600 tokens back, and only where the KV is the prompt's own."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.tokenizer import Tokenizer
from cluster.service import EMBEDDED_MODEL
from core.ids import AttemptId
from core.kv import SlabShape, num_blocks
from core.request import SamplingParams, pack_tokens
from core.step import RowJoin, StepPlan
from engine.embedded.prompts import code_word_prompt
from engine.executor import Executor
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import read_model_info
from tests.service.running import Running

pytestmark = pytest.mark.slow

NUM_WORDS = 60
BLOCK_SIZE = 16
SLOTS = 64
"""Blocks of one prompt and its answer."""


def asked(number: int) -> tuple[str, str]:
    """A prompt whose word stands 500 to 620 tokens back, and the word."""
    return code_word_prompt(70_000 + number, 500 + 2 * number)


def test_95_of_100_unseen_words_arrive_through_two_nodes(pair: Running) -> None:
    def is_right(number: int) -> bool:
        text, word = asked(number)
        sampling = pb.SamplingParams(max_tokens=12, temperature=0.0)
        reply = pair.ask(pb.GenerateRequest(text=text, chat=True, sampling=sampling, tenant=f"w{number}"))
        return reply.text.strip().startswith(word)

    with ThreadPoolExecutor(4) as pool:
        right = sum(pool.map(is_right, range(NUM_WORDS)))
    assert right >= 0.95 * NUM_WORDS, f"{right} of {NUM_WORDS}"


def test_with_another_requests_blocks_in_place_of_the_words_own_almost_none_arrives() -> None:
    shape = SlabShape(read_model_info(EMBEDDED_MODEL).kv_layout(BLOCK_SIZE, "float32"), 2 * SLOTS)
    slab = bytearray(shape.total_bytes)
    executor = load_executor(ExecutorConfig(EMBEDDED_MODEL, "float32", "cpu"), memoryview(slab), shape)
    tokenizer = Tokenizer.from_folder(EMBEDDED_MODEL)
    intact = sum(_answers(executor, tokenizer, slab, shape, number, swap=False) for number in range(12))
    swapped = sum(_answers(executor, tokenizer, slab, shape, number, swap=True) for number in range(12))
    assert intact >= 11
    assert swapped <= 2
    executor.close()


def _answers(
    executor: Executor, tokenizer: Tokenizer, slab: bytearray, shape: SlabShape, number: int, *, swap: bool
) -> bool:
    """Whether the word comes out of KV that was computed, and perhaps swapped, before the last prompt token."""
    (text, word), (other, _) = asked(number), code_word_prompt(80_000 + number, 500)
    ids, other_ids = tokenizer.encode_chat(text), tokenizer.encode_chat(other)
    mine, theirs = tuple(range(SLOTS)), tuple(range(SLOTS, 2 * SLOTS))
    _run(executor, "mine", ids[:-1], 0, mine, len(ids) - 1)
    _run(executor, "theirs", other_ids[:-1], 0, theirs, len(other_ids) - 1)
    if swap:
        word_at = _find(ids, tokenizer.encode(word))
        for block in range(word_at // BLOCK_SIZE, num_blocks(word_at + 10, BLOCK_SIZE)):
            size, a, b = (
                shape.layout.bytes_per_block,
                shape.block_offset(mine[block]),
                shape.block_offset(theirs[block]),
            )
            slab[a : a + size], slab[b : b + size] = slab[b : b + size], slab[a : a + size]
    answer = [_run(executor, "reader", ids, len(ids) - 1, mine, 1)]
    while len(answer) < 12:
        result = executor.run(StepPlan(0, (AttemptId("reader"),), (1,)))
        answer.append(result.token_ids[0])
    executor.run(StepPlan(0, (), (), left=(AttemptId("mine"), AttemptId("theirs"), AttemptId("reader"))))
    return tokenizer.decode(answer).strip().startswith(word)


def _run(
    executor: Executor, name: str, ids: list[int], num_computed: int, blocks: tuple[int, ...], num_tokens: int
) -> int:
    sampling = SamplingParams(max_tokens=64, temperature=0.0)
    attempt = AttemptId(name)
    join = RowJoin(attempt, pack_tokens(ids), num_computed, sampling, blocks, (1,) * len(blocks), len(ids))
    return executor.run(StepPlan(0, (attempt,), (num_tokens,), joined=(join,))).token_ids[0]


def _find(ids: list[int], needle: list[int]) -> int:
    return next(at for at in range(len(ids)) if ids[at : at + len(needle)] == needle)
