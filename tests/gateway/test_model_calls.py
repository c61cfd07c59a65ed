"""Tokenize, Detokenize, the models and Abort: what they answer, and what they refuse by field."""

from collections.abc import Awaitable, Callable

import pytest

from cluster.api.v1 import inference_pb2 as pb
from tests.gateway.calls import TEXT
from tests.gateway.fake_cluster import MAX_MODEL_LEN, VOCAB_SIZE, Place, serve
from tests.gateway.keyed import Stub, channel_to
from tests.gateway.test_bad_input import IA, check, refused

SERVICE = "/penstock.v1.InferenceService/"


def asking(scenario: Callable[[Place, Stub], Awaitable[None]]) -> None:
    async def run(place: Place) -> None:
        async with channel_to(place) as channel:
            await scenario(place, Stub(channel))

    serve(run)


def test_the_tokens_told_are_those_that_generate_takes_and_their_text_comes_back() -> None:
    async def scenario(place: Place, stub: Stub) -> None:
        for chat in (False, True):
            request = pb.TokenizeRequest(text=TEXT, chat=chat, with_tokens=True)
            told = await stub.ask("Tokenize", request, pb.TokenizeResponse)
            assert isinstance(told, pb.TokenizeResponse)
            sent = pb.GenerateRequest(text=TEXT, chat=chat, sampling=pb.SamplingParams(max_tokens=1))
            async for response in place.client.generate(sent):
                assert response.usage.prompt_tokens == len(told.token_ids)
            assert (len(told.tokens), told.max_model_len) == (len(told.token_ids), MAX_MODEL_LEN)
            back = await stub.ask("Detokenize", pb.DetokenizeRequest(token_ids=told.token_ids), pb.DetokenizeResponse)
            assert isinstance(back, pb.DetokenizeResponse)
            assert back.text == (f"<user>{TEXT}</user>" if chat else TEXT)

    asking(scenario)


def test_the_model_is_listed_and_found_by_its_name_or_by_none() -> None:
    async def scenario(place: Place, stub: Stub) -> None:
        listed = await stub.ask("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)
        expected = pb.Model(
            name="tiny", vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN, block_size=16, can_chat=True
        )
        assert list(listed.models) == [expected]  # type: ignore[attr-defined]
        for name in ("tiny", ""):
            found = await stub.ask("GetModel", pb.GetModelRequest(name=name), pb.GetModelResponse)
            assert found.model == expected  # type: ignore[attr-defined]

    asking(scenario)


@pytest.mark.parametrize(
    ("method", "data", "status", "code", "field"),
    [
        ("Tokenize", b"", IA, "empty_prompt", "text"),
        ("Tokenize", pb.TokenizeRequest(text="x", model="gpt-9"), "NOT_FOUND", "model_not_found", "model"),
        ("Tokenize", pb.TokenizeRequest(text="x" * 90_000), IA, "context_length_exceeded", "text"),
        ("Tokenize", b"\x12\x01\xff", IA, "invalid_utf8", "text"),
        ("Tokenize", b"\xff\xff", IA, "invalid_request", ""),
        ("Tokenize", b"\x12" + b"\x80\x80\x80\x04" + b"x" * (8 << 20), "RESOURCE_EXHAUSTED", "body_too_large", ""),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[VOCAB_SIZE]), IA, "invalid_token_id", "token_ids[0]"),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1, -1]), IA, "invalid_token_id", "token_ids[1]"),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1] * 513), IA, "context_length_exceeded", "token_ids"),
        ("GetModel", pb.GetModelRequest(name="gpt-9"), "NOT_FOUND", "model_not_found", "name"),
        ("GetModel", pb.GetModelRequest(name="../x"), IA, "model_not_found", "name"),
        ("Abort", b"", IA, "invalid_request_id", "request_ids"),
        ("Abort", pb.AbortRequest(request_ids=[""]), IA, "invalid_request_id", "request_ids"),
        ("Abort", pb.AbortRequest(request_ids=map(str, range(101))), IA, "invalid_request_id", "request_ids"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_what_these_calls_do_not_take_is_refused_by_field(
    method: str, data: bytes | object, status: str, code: str, field: str
) -> None:
    async def scenario(place: Place) -> None:
        sent = data if isinstance(data, bytes) else data.SerializeToString()  # type: ignore[attr-defined]
        check(await refused(place, sent, SERVICE + method), status, code, field)

    serve(scenario)


def test_a_salt_or_a_class_that_is_none_is_refused_by_name() -> None:
    async def scenario(place: Place) -> None:
        for salt in ("a b", "x" * 65, "a/b", "ä"):
            data = pb.GenerateRequest(text="fox", cache_salt=salt).SerializeToString()
            check(await refused(place, data), IA, "invalid_cache_salt", "cache_salt")
        data = pb.GenerateRequest(text="fox", slo_class="premium").SerializeToString()
        answer = await refused(place, data)
        check(answer, IA, "invalid_slo_class", "slo_class")
        assert "standard, offline" in answer.message

    serve(scenario)
