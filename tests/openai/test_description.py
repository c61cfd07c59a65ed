"""The interface's description of itself."""

import re

from cluster.gateway.openai.messages_request import MessagesRequest
from cluster.gateway.openai.requests import ChatRequest, CompletionRequest
from tests.openai.serving import Place, serve

ENDPOINTS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{name}"),
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"),
    "/abort_request",
    *("/health", "/ready", "/ping", "/version"),
}


def test_every_endpoint_and_every_field_is_described() -> None:
    async def scenario(place: Place) -> None:
        document = (await place.client.get("/openapi.json")).json()
        assert set(document["paths"]) == ENDPOINTS
        for path, methods in document["paths"].items():
            for operation in methods.values():
                assert operation["summary"] and operation["description"], path
        schemas = document["components"]["schemas"]
        for kind in (ChatRequest, CompletionRequest, MessagesRequest):
            named = {field.alias or name for name, field in kind.model_fields.items()}
            assert set(schemas[kind.__name__]["properties"]) == named
            assert schemas[kind.__name__]["additionalProperties"] is False
        text = str(document)
        assert all(name in schemas for name in re.findall(r"#/components/schemas/(\w+)", text))

    serve(scenario)


def test_the_page_shows_all_of_it_and_fetches_nothing_from_elsewhere() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.get("/docs")
        assert answer.headers["content-type"].startswith("text/html")
        page = answer.text
        for path in ENDPOINTS:
            assert path in page
        for field in ("max_completion_tokens", "slo", "deadline_ms", "tool_choice", "echo"):
            assert f"<code>{field}</code>" in page
        links = re.findall(r"(?:src|href|action)\s*=\s*['\"]([^'\"]*)", page) + re.findall(r"url\(([^)]*)", page)
        assert set(links) <= {"data:,", "openapi.json"}
        assert "<script" not in page
        assert f"curl {place.url}/v1/chat/completions" in page

    serve(scenario)
