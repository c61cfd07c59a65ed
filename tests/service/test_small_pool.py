"""A cluster whose pools are small: what can never fit is refused, what must wait waits, and growth preempts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import CallFailed
from tests.service.running import Running, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """20 blocks of 16 tokens a node."""
    with running("--prefill", "1", "--decode", "1", "--num-gpu-blocks-override", "20") as service:
        yield service


def ask(small: Running, num_tokens: int, max_tokens: int, seed: int = 0) -> tuple[int, ...]:
    """A prompt of token ids."""
    ids = pb.TokenIds(ids=[seed % 100 + 100, *range(100, 99 + num_tokens)])
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=seed, ignore_eos=True)
    return small.ask(pb.GenerateRequest(token_ids=ids, sampling=sampling, tenant=f"t{seed}")).token_ids


def test_a_request_larger_than_any_pool_is_refused_with_both_numbers(small: Running) -> None:
    with pytest.raises(CallFailed) as caught:
        ask(small, 300, 200)
    assert caught.value.status is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.code == "request_too_large_for_cluster"
    assert "20" in caught.value.message
    assert len(ask(small, 100, 8)) == 8


def test_requests_that_do_not_fit_at_once_wait_and_answer_as_they_do_alone(small: Running) -> None:
    alone = [ask(small, 150, 40, seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: ask(small, 150, 40, seed), range(6)))
    assert together == alone
    small.until_idle(2)
