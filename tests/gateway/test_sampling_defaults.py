"""What a model's generation_config.json says of sampling, and who it is for."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.gateway.limits import NO_DEFAULTS, SamplingDefaults
from cluster.gateway.sampling_defaults import sampling_defaults
from core.errors import ConfigError
from tests.gateway.calls import answer, ask
from tests.gateway.fake_cluster import Place, serve
from tests.openai.serving import Place as HttpPlace
from tests.openai.serving import serve as serve_http

TOLD = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "eos_token_id": [1],
    "do_sample": True,
}
DEFAULTS = SamplingDefaults(0.6, 0.9, 20, None, 1.05)


def folder(tmp_path: Path, told: object) -> Path:
    (tmp_path / "generation_config.json").write_text(told if isinstance(told, str) else json.dumps(told))
    return tmp_path


def test_the_models_own_are_read_unless_another_folder_or_none_is_named(tmp_path: Path) -> None:
    model, other = folder(tmp_path, TOLD), tmp_path / "other"
    other.mkdir()
    assert sampling_defaults("auto", model, 100) == DEFAULTS
    assert sampling_defaults("vllm", model, 100) == NO_DEFAULTS
    assert sampling_defaults("auto", other, 100) == NO_DEFAULTS
    assert sampling_defaults(str(folder(other, {"min_p": 0.1})), model, 100) == SamplingDefaults(min_p=0.1)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"temperature": 3}, "temperature: must be 0 to 2, is 3"),
        ({"top_p": 0}, "top_p: must be above 0"),
        ({"top_k": -5}, "top_k: must be -1, 0"),
        ({"temperature": "hot"}, "cannot be read"),
        ({"top_k": 1.5}, "cannot be read"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_what_no_request_could_ask_for_is_the_operators_error(tmp_path: Path, told: object, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sampling_defaults("auto", folder(tmp_path, told), 100)
    assert "--generation-config: " in refused.value.message
    assert says in refused.value.message


def test_a_folder_without_the_file_is_refused_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--generation-config: .*cannot be read"):
        sampling_defaults(str(tmp_path), tmp_path, 100)


def test_a_request_gets_them_where_it_says_nothing_and_keeps_what_it_says() -> None:
    async def scenario(place: Place) -> None:
        place.gateway.model = replace(place.gateway.model, defaults=DEFAULTS)
        await answer(place, ask(max_tokens=1))
        await answer(place, ask(max_tokens=1, temperature=0, top_p=1, top_k=0, min_p=0.5, repetition_penalty=1))
        quiet, loud = (request.sampling for request in place.cluster.arrived)
        assert (quiet.temperature, quiet.top_p, quiet.top_k, quiet.min_p) == (0.6, 0.9, 20, 0.0)
        assert quiet.repetition_penalty == 1.05
        assert (loud.temperature, loud.top_p, loud.top_k, loud.min_p) == (0, 1, 0, 0.5)
        assert loud.repetition_penalty == 1

    serve(scenario)


def test_over_http_they_hold_too_and_a_response_says_them() -> None:
    async def scenario(place: HttpPlace) -> None:
        place.gateway.model = replace(place.gateway.model, defaults=DEFAULTS)
        told: list[httpx.Response] = await asyncio.gather(
            place.client.post("/v1/responses", json={"input": "fox", "max_output_tokens": 2}),
            place.client.post("/v1/responses", json={"input": "fox", "max_output_tokens": 2, "temperature": 0}),
        )
        assert [(it.json()["temperature"], it.json()["top_p"]) for it in told] == [(0.6, 0.9), (0, 0.9)]
        assert sorted(request.sampling.temperature for request in place.cluster.arrived) == [0, 0.6]

    serve_http(scenario)
