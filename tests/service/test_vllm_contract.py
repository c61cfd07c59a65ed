"""One cluster, two contracts: vLLM's own stubs get the tokens that our interface gives, across prefill and decode."""

import json
import zipfile
from io import BytesIO

import grpc
import pytest

smg = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2", reason="smg-grpc-proto is not installed")

from smg_grpc_proto import vllm_engine_pb2_grpc  # noqa: E402
from smg_grpc_proto.generated import common_pb2  # noqa: E402

from cluster.api.v1 import inference_pb2 as pb  # noqa: E402
from tests.service.running import GUARD_S, running  # noqa: E402

pytestmark = pytest.mark.slow


def test_both_contracts_answer_alike() -> None:
    with running("--prefill", "1", "--decode", "1", "--vllm-grpc") as service:
        sampling = {"max_tokens": 32, "temperature": 0.5, "seed": 5, "ignore_eos": True}
        ours = service.ask(pb.GenerateRequest(text="Once upon a time", sampling=pb.SamplingParams(**sampling)))
        with grpc.insecure_channel(service.address) as channel:
            stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
            request = smg.GenerateRequest(
                request_id="x", text="Once upon a time", sampling_params=smg.SamplingParams(**sampling), stream=True
            )
            responses = list(stub.Generate(request, timeout=GUARD_S))
            assert tuple(responses[-1].complete.output_ids) == ours.token_ids
            assert tuple(t for it in responses for t in it.chunk.token_ids) == ours.token_ids
            chunks = stub.GetTokenizer(common_pb2.GetTokenizerRequest(), timeout=GUARD_S)
            archive = zipfile.ZipFile(BytesIO(b"".join(chunk.data for chunk in chunks)))
            assert len(json.loads(archive.read("tokenizer.json"))["model"]["vocab"]) > 1000
            model = stub.GetModelInfo(smg.GetModelInfoRequest(), timeout=GUARD_S)
            assert (model.served_model_name, bool(model.eos_token_ids)) == ("penstock-embedded", True)
            service.until(lambda: stub.GetLoads(smg.GetLoadsRequest(), timeout=GUARD_S).loads[0].num_total_reqs == 0)
        service.until_idle(2)
