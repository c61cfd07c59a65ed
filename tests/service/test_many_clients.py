"""Many clients at once, the server known by reflection only; some leave at random moments."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from engine.embedded.prompts import code_word_prompt
from tests.service.running import GUARD_S, Running

pytestmark = pytest.mark.slow


class Stranger:
    """A client that knows an address and nothing else."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        method = pool.FindServiceByName("penstock.v1.InferenceService").FindMethodByName("Generate")
        self.request_class = GetMessageClass(method.input_type)
        self.generate = self.channel.unary_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            self.request_class.SerializeToString,
            GetMessageClass(method.output_type).FromString,
        )

    def request(self, seed: int) -> Any:
        """A prompt of 100 to 600 tokens and an answer of 1 to 64."""
        chance = Random(seed)
        text, _ = code_word_prompt(seed, chance.randint(60, 560))
        request = self.request_class(text=text, chat=True, request_id=f"stranger-{seed}")
        request.sampling.max_tokens = chance.randint(1, 64)
        request.sampling.seed = seed
        request.sampling.ignore_eos = True
        return request


def test_32_strangers_each_get_one_whole_answer_and_every_block_comes_back(pair: Running) -> None:
    stranger = Stranger(pair.address)

    def ask(seed: int) -> tuple[int, list[Any]]:
        request = stranger.request(seed)
        return request.sampling.max_tokens, list(stranger.generate(request, timeout=GUARD_S))

    with stranger.channel, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    for wanted, responses in answers:
        tokens = [token for response in responses for token in response.token_ids]
        assert [r.finish_reason for r in responses if r.finish_reason] == ["length"]
        assert responses[-1].finish_reason == "length"
        assert len(tokens) == wanted == responses[-1].usage.completion_tokens
        assert responses[-1].usage.prompt_tokens > 60
    pair.until_idle(2)


def test_clients_that_leave_at_random_moments_leak_nothing(pair: Running) -> None:
    stranger = Stranger(pair.address)
    left = threading.Semaphore(0)

    def ask_and_leave(seed: int) -> None:
        call = stranger.generate(stranger.request(seed), timeout=GUARD_S)
        threading.Timer(Random(seed).random() * 0.6, call.cancel).start()
        with suppress(grpc.RpcError):
            for _ in call:
                pass
        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED), call.details()
        if call.code() is grpc.StatusCode.CANCELLED:
            left.release()

    with stranger.channel, ThreadPoolExecutor(24) as pool:
        list(pool.map(ask_and_leave, range(1000, 1072)))
    assert left.acquire(blocking=False), "nobody left before the end: the test tested nothing"
    pair.until_idle(2)
