"""The contract that vLLM's server shares with its gateways: the same answers, in its words, to its own stubs."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

smg = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2", reason="smg-grpc-proto is not installed")

from smg_grpc_proto import vllm_engine_pb2_grpc  # noqa: E402
from smg_grpc_proto.generated import common_pb2  # noqa: E402

from cluster.gateway.access import Access  # noqa: E402
from cluster.gateway.grpc_server import Contract, GrpcServer  # noqa: E402
from cluster.gateway.keys import Grant  # noqa: E402
from cluster.gateway.smg import SMG_SERVICE_NAME, SmgModel, SmgService  # noqa: E402
from cluster.gateway.smg_messages import our_request  # noqa: E402
from core.goodput import Outcome  # noqa: E402
from core.request import AnswerFormat, FormatKind, unpack_tokens  # noqa: E402
from tests.gateway.calls import TEXT  # noqa: E402
from tests.gateway.fake_cluster import Place, score, serve, until  # noqa: E402
from tests.gateway.keyed import Keys  # noqa: E402
from tests.gateway.test_bad_input import check, refused  # noqa: E402

Scenario = Callable[[Place, Any], Awaitable[None]]
IDS = (5, 6, 7, 8)


def speaking(scenario: Scenario, folder: Path = Path("/nowhere"), keys: Keys | None = None) -> None:
    """The usual gateway behind a second server that speaks both contracts; the scenario gets a stub of theirs."""

    async def run(place: Place) -> None:
        if keys is not None:
            place.gateway.access = Access(keys.settings)
        service = SmgService(place.gateway, lambda: place.cluster.state, SmgModel(folder, "llama", (2, 3), "float32"))
        contract = Contract(SMG_SERVICE_NAME, service.handlers())
        server = GrpcServer(place.gateway, lambda: place.cluster.state, also=(contract,))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
                stub.address = server.address
                await scenario(place, stub)
        finally:
            await server.stop()

    serve(run)


def ask(stream: bool = True, **sampling: object) -> Any:
    params = smg.SamplingParams(**({"max_tokens": 6} | sampling))
    return smg.GenerateRequest(
        request_id="theirs", tokenized=smg.TokenizedInput(input_ids=IDS), sampling_params=params, stream=stream
    )


async def answered(stub: Any, request: Any) -> tuple[list[Any], list[Any]]:
    """Chunks and completions."""
    responses = [response async for response in stub.Generate(request)]
    chunks = [response.chunk for response in responses if response.HasField("chunk")]
    return chunks, [response.complete for response in responses if response.HasField("complete")]


def test_a_stream_brings_every_token_once_and_then_the_whole() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        chunks, (last,) = await answered(stub, ask())
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        assert tokens == list(last.output_ids) == [5, 6, 7, 8, 5, 6]
        assert sum(chunk.completion_tokens for chunk in chunks) == last.completion_tokens == 6
        assert {chunk.prompt_tokens for chunk in chunks} == {last.prompt_tokens} == {4}
        assert (last.finish_reason, last.cached_tokens, last.WhichOneof("matched_stop")) == ("length", 2, None)

    speaking(scenario)


def test_without_streaming_there_is_one_answer_for_each_choice() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        chunks, completions = await answered(stub, ask(stream=False, n=3))
        assert chunks == []
        assert sorted((it.index, tuple(it.output_ids)) for it in completions) == [
            (choice, tuple(IDS[(place + choice) % 4] for place in range(6))) for choice in range(3)
        ]

    speaking(scenario)


def test_text_and_the_contracts_zeros_mean_what_they_mean_there() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        text = smg.GenerateRequest(text=TEXT, sampling_params=smg.SamplingParams(max_tokens=1, temperature=0.5, seed=7))
        await answered(stub, text)
        await answered(stub, ask(max_tokens=1, top_p=0.5, top_k=3, repetition_penalty=1.5, stop_token_ids=[9]))
        first, second = place.cluster.arrived
        assert unpack_tokens(first.token_ids) == tuple(place.tokenizer.encode(TEXT))
        told = first.sampling
        assert (told.top_p, told.repetition_penalty, told.temperature, told.seed) == (1.0, 1.0, 0.5, 7)
        told = second.sampling
        assert (told.top_p, told.top_k, told.repetition_penalty, told.stop_token_ids) == (0.5, 3, 1.5, (9,))
        assert told.temperature == 1.0

    speaking(scenario)


def test_logprobs_of_answer_and_prompt_stand_beside_their_tokens() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        chunks, (last,) = await answered(stub, ask(logprobs=2, prompt_logprobs=1))
        told = last.output_logprobs
        assert list(told.token_ids) == list(last.output_ids)
        assert list(told.token_logprobs) == pytest.approx([score(0, place, 2).logprob for place in range(6)])
        assert [list(top.token_ids) for top in told.top_logprobs] == [[0, 1]] * 6
        assert [it for chunk in chunks for it in chunk.output_logprobs.token_ids] == list(last.output_ids)
        prompt = chunks[0].input_logprobs
        assert list(prompt.token_ids) == list(IDS)
        assert [it.HasField("value") for it in prompt.token_logprobs] == [False, True, True, True]
        assert last.input_logprobs == prompt
        assert not any(chunk.HasField("input_logprobs") for chunk in chunks[1:])

    speaking(scenario)


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        ({"json_schema": '{"type": "integer"}'}, FormatKind.JSON_SCHEMA, '{"type": "integer"}'),
        ({"json_object": True}, FormatKind.JSON_SCHEMA, '{"type": "object"}'),
        ({"regex": "a+"}, FormatKind.REGEX, "a+"),
        ({"grammar": 'start: "a"'}, FormatKind.LARK, 'start: "a"'),
        ({"choice": smg.ChoiceConstraint(choices=["a", 'b"'])}, FormatKind.LARK, 'start: "a" | "b\\""'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_constraint_arrives_as_the_answers_format(wanted: Any, kind: FormatKind, text: str) -> None:
    async def scenario(place: Place, stub: Any) -> None:
        await answered(stub, ask(**wanted))
        (request,) = place.cluster.arrived
        assert request.sampling.format == AnswerFormat(kind, text)

    speaking(scenario)


def test_a_stop_string_is_named() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        word = place.tokenizer.decode([6])
        _, (last,) = await answered(stub, ask(stop=[word]))
        assert (last.finish_reason, last.matched_stop_str, list(last.output_ids)) == ("stop", word, [5, 6])

    speaking(scenario)


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (smg.GenerateRequest(text="x", mm_inputs=smg.MultimodalInputs()), "unsupported_content", "mm_inputs"),
        (smg.GenerateRequest(text="x", media_refs=smg.MediaRefs()), "unsupported_content", "media_refs"),
        (smg.GenerateRequest(text="x", extra_mm_inputs=[{}]), "unsupported_content", "extra_mm_inputs"),
        (smg.GenerateRequest(text="x", kv_transfer_params_json="{}"), "reserved_parameter", "kv_transfer_params_json"),
        (smg.GenerateRequest(text="x", data_parallel_rank=1), "unsupported_parameter", "data_parallel_rank"),
        (
            smg.GenerateRequest(text="x", sampling_params=smg.SamplingParams(structural_tag="{}")),
            "unsupported_parameter",
            "sampling_params.structural_tag",
        ),
        (smg.GenerateRequest(), "empty_prompt", "text"),
        (smg.GenerateRequest(tokenized=smg.TokenizedInput(input_ids=[999])), "invalid_token_id", "token_ids.ids[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_served_is_refused_by_its_name(request_: Any, code: str, field: str) -> None:
    async def scenario(place: Place, stub: Any) -> None:
        answer = await refused(stub.address, request_.SerializeToString(), f"/{SMG_SERVICE_NAME}/Generate")
        check(answer, "INVALID_ARGUMENT", code, field)
        assert place.cluster.arrived == []

    speaking(scenario)


def test_abort_ends_the_call_of_that_name() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        place.cluster.answer = place.cluster.silence
        call = stub.Generate(ask())
        await until(lambda: bool(place.cluster.arrived))
        assert await stub.Abort(smg.AbortRequest(request_ids=["theirs", "nobody"])) == smg.AbortResponse()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        assert list(place.cluster.told_ends.values()) == [Outcome.CANCELLED]

    speaking(scenario)


def test_health_model_server_and_load_are_told() -> None:
    async def scenario(place: Place, stub: Any) -> None:
        assert (await stub.HealthCheck(smg.HealthCheckRequest())).healthy
        model = await stub.GetModelInfo(smg.GetModelInfoRequest())
        assert (model.served_model_name, model.max_context_length, model.vocab_size) == ("tiny", 512, 300)
        assert (list(model.eos_token_ids), model.model_type, model.is_generation) == ([2, 3], "llama", True)
        server = await stub.GetServerInfo(smg.GetServerInfoRequest())
        assert (server.block_size, server.max_num_seqs, server.kv_cache_dtype) == (16, 16, "float32")
        assert server.uptime_seconds >= 0
        (load,) = (await stub.GetLoads(smg.GetLoadsRequest())).loads
        assert (load.max_total_num_tokens, load.num_total_reqs, load.max_running_requests) == (2 * 36 * 16, 0, 16)
        assert load.token_usage == pytest.approx((36 - 1 - 2) / 36)
        assert not (await stub.FlushCache(common_pb2.FlushCacheRequest())).success
        for profile in (
            stub.StartProfile(common_pb2.StartProfileRequest()),
            stub.StopProfile(common_pb2.StopProfileRequest()),
        ):
            assert not (await profile).success
        for call in (
            stub.Embed(smg.EmbedRequest()),
            stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        place.gateway.drain()
        assert (await stub.HealthCheck(smg.HealthCheckRequest())).message == "draining"

    speaking(scenario)


def test_the_tokenizer_comes_as_a_zip_with_its_digest_and_nothing_else_of_the_folder(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors", "secret.txt"):
        (tmp_path / name).write_bytes(name.encode() * 80_000)

    async def scenario(place: Place, stub: Any) -> None:
        chunks = [chunk async for chunk in stub.GetTokenizer(common_pb2.GetTokenizerRequest())]
        data = b"".join(chunk.data for chunk in chunks)
        assert [bool(chunk.sha256) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
        archive = zipfile.ZipFile(io.BytesIO(data))
        assert archive.namelist() == ["tokenizer.json", "tokenizer_config.json", "config.json"]
        assert archive.read("tokenizer.json") == b"tokenizer.json" * 80_000

    speaking(scenario, tmp_path)


def test_keys_hold_here_as_well() -> None:
    keys = Keys(Grant("a", models=("other",)))

    async def scenario(place: Place, stub: Any) -> None:
        for call, metadata, code in (
            (stub.Generate(ask()), (), grpc.StatusCode.UNAUTHENTICATED),
            (stub.Generate(ask(), metadata=keys.metadata("a")), (), grpc.StatusCode.PERMISSION_DENIED),
            (
                stub.GetTokenizer(common_pb2.GetTokenizerRequest(), metadata=keys.metadata("a")),
                (),
                grpc.StatusCode.PERMISSION_DENIED,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call.read()
            assert failed.value.code() is code, metadata
        await asyncio.sleep(0)

    speaking(scenario, keys=keys)


def test_callers_send_the_models_own_defaults_themselves() -> None:
    ours = our_request(smg.GenerateRequest(text="a", sampling_params=smg.SamplingParams(top_p=0.5))).sampling
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    assert all(ours.HasField(name) for name in names)
    assert [getattr(ours, name) for name in names] == [1.0, 0.5, 0, 0.0, 1.0]
