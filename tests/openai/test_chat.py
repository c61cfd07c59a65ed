"""Chat completions, asked for by the official client."""

import asyncio
import json

import openai
import pytest

from cluster.gateway.chat_template import Conversation
from core.goodput import Outcome
from core.request import SLO, unpack_tokens
from tests.openai.asking import CHAT, TEXT, ask, chunks_of, client_of, expected, says, texts_of
from tests.openai.serving import Place, Setting, serve

TWO_ROLES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)


def test_the_official_client_gets_an_answer_with_usage_and_request_id() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            done = await client.chat.completions.create(model="tiny", messages=says(TEXT), max_tokens=40)
        (choice,) = done.choices
        assert choice.message.content == expected(place, TEXT, 40)
        assert (choice.message.role, choice.finish_reason, done.object) == ("assistant", "length", "chat.completion")
        num_prompt_tokens = len(place.tokenizer.encode(TEXT))
        assert done.usage is not None and done.usage.prompt_tokens_details is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (num_prompt_tokens, 40)
        assert done.usage.total_tokens == num_prompt_tokens + 40
        assert done.usage.prompt_tokens_details.cached_tokens == 2
        assert done._request_id and len(done._request_id) == 32

    serve(scenario)


def test_a_stream_has_one_event_for_each_token_and_the_role_with_the_first() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=says(TEXT), max_tokens=40, stream=True, stream_options={"include_usage": True}
            )
            *chunks, last = [chunk async for chunk in stream]
        assert len(chunks) == 40
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected(place, TEXT, 40)
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * 39]
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * 39, "length"]
        assert (last.choices, [chunk.usage for chunk in chunks]) == ([], [None] * 40)
        assert last.usage is not None and last.usage.completion_tokens == 40
        assert len({chunk.id for chunk in [*chunks, last]}) == 1

    serve(scenario)


def test_tokens_that_come_together_still_have_an_event_each() -> None:
    async def scenario(place: Place) -> None:
        async def burst(request: object) -> None:
            place.cluster.emit(place.cluster.arrived[0], 0, 40)

        place.cluster.answer = burst
        chunks = chunks_of((await ask(place, CHAT, messages=says(TEXT), max_tokens=40, stream=True)).text)
        assert len(chunks) == 40
        ids = place.tokenizer.encode(TEXT)
        pieces = [place.tokenizer.decode([ids[index % len(ids)]]) for index in range(40)]
        whole = [(text, piece) for text, piece in zip(texts_of(chunks), pieces, strict=True) if "\ufffd" not in piece]
        assert len(whole) > 20
        assert all(text == piece or text.endswith(piece) for text, piece in whole)

    serve(scenario)


def test_the_synchronous_client_streams_too() -> None:
    def ask_it(url: str) -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = client.chat.completions.create(model="tiny", messages=says(TEXT), max_tokens=9, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async def scenario(place: Place) -> None:
        assert await asyncio.to_thread(ask_it, place.url) == expected(place, TEXT, 9)

    serve(scenario)


def test_choices_are_told_apart_whole_and_streamed() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            done = await client.chat.completions.create(model="tiny", messages=says(TEXT), max_tokens=7, n=3)
            texts = [""] * 3
            stream = await client.chat.completions.create(
                model="tiny", messages=says(TEXT), max_tokens=7, n=3, stream=True
            )
            async for chunk in stream:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        assert texts == [choice.message.content for choice in done.choices]
        assert texts == [expected(place, TEXT, 7, choice) for choice in range(3)]

    serve(scenario)


def test_logprobs_have_tokens_bytes_and_the_best_beside_them() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            done = await client.chat.completions.create(
                model="tiny", messages=says(TEXT), max_tokens=30, logprobs=True, top_logprobs=2
            )
            stream = await client.chat.completions.create(
                model="tiny", messages=says(TEXT), max_tokens=30, logprobs=True, top_logprobs=2, stream=True
            )
            streamed = [chunk.choices[0].logprobs async for chunk in stream]
        logprobs = done.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        data = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
        assert data.decode(errors="ignore") == (done.choices[0].message.content or "").rstrip("\ufffd")
        assert [entry.logprob for entry in logprobs.content] == [-2 - place / 1024 for place in range(30)]
        assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
        assert all(it is not None and len(it.content or ()) == 1 for it in streamed)
        assert [it.content[0] for it in streamed if it and it.content] == logprobs.content

    serve(scenario)


def test_every_sampling_field_arrives_as_it_was_asked() -> None:
    extra = {"top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5, "min_tokens": 2, "ignore_eos": True}

    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            await client.chat.completions.create(
                model="tiny",
                messages=says("fox"),
                temperature=0.5,
                top_p=0.75,
                seed=11,
                stop=["zzz", "yyy"],
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                logit_bias={"7": -100},
                max_tokens=99,
                max_completion_tokens=4,
                user="somebody",
                store=True,
                extra_body={**extra, "stop_token_ids": [3], "priority": 3, "deadline_ms": 30_000},
            )
        (request,) = place.cluster.arrived
        got = request.sampling
        assert (got.temperature, got.top_p, got.seed, got.max_tokens) == (0.5, 0.75, 11, 4)
        assert (got.top_k, got.min_p, got.repetition_penalty, got.min_tokens) == (7, 0.25, 1.5, 2)
        assert (got.presence_penalty, got.frequency_penalty, got.ignore_eos) == (0.5, -0.5, True)
        assert (got.logit_bias, got.stop_token_ids) == (((7, -100.0),), (3,))
        assert request.priority == 3
        assert 29 < request.deadline_s <= 30

    serve(scenario)


def test_messages_go_through_the_models_template() -> None:
    async def scenario(place: Place) -> None:
        messages = [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
            {"role": "user", "content": "d", "name": "me"},
        ]
        assert (await ask(place, CHAT, messages=messages, max_tokens=1)).status_code == 200
        (request,) = place.cluster.arrived
        told = place.tokenizer.decode(list(unpack_tokens(request.token_ids)))
        assert told == "<system>be brief<user>a\nb<assistant>c<user>d<go>"

    serve(scenario, Setting(template=TWO_ROLES))


def test_a_stop_string_ends_the_answer_and_is_left_out() -> None:
    async def scenario(place: Place) -> None:
        body = (await ask(place, CHAT, messages=says("one two three"), max_tokens=30, stop="three")).json()
        (choice,) = body["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one two ", "stop")
        assert choice["stop_reason"] == "three"
        streamed = await ask(place, CHAT, messages=says("one two three"), max_tokens=30, stop="three", stream=True)
        chunks = chunks_of(streamed.text)
        assert "".join(texts_of(chunks)) == "one two "
        assert len(chunks) == body["usage"]["completion_tokens"]
        assert chunks[-1]["choices"][0]["stop_reason"] == "three"

    serve(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_targets_come_from_the_body_or_from_headers_and_the_answer_says_whether_they_were_met(stream: bool) -> None:
    async def scenario(place: Place) -> None:
        asked = {"messages": says("fox"), "max_tokens": 3, "stream": stream}
        in_body = await ask(place, CHAT, **asked, slo={"ttft_ms": 60_000, "tpot_s": 60.0})
        headers = {"x-slo-ttft-ms": "0.001", "x-slo-tpot-ms": "60000", "x-priority": "-4", "x-deadline-ms": "9000"}
        in_headers = await place.client.post(CHAT, json=asked, headers=headers)
        other = {"x-llm-d-slo-ttft-ms": "2500", "x-llm-d-slo-tpot-ms": "100"}
        await place.client.post(CHAT, json=asked, headers=other)
        ends = [
            json.loads(chunks) if not stream else chunks_of(chunks)[-1] for chunks in (in_body.text, in_headers.text)
        ]
        assert [end["penstock"]["slo"]["met"] for end in ends] == [True, False]
        assert ends[0]["penstock"]["slo"]["target"] == {"ttft_s": 60.0, "tpot_s": 60.0}
        assert ends[0]["penstock"]["timing"]["num_attempts"] == 1
        first, second, third = place.cluster.arrived
        assert (first.slo, third.slo) == (SLO(60, 60), SLO(2.5, 0.1))
        assert second.slo == SLO(pytest.approx(1e-6), 60)  # type: ignore[arg-type]
        assert second.priority == -4
        assert second.deadline_s <= 9

    serve(scenario)


def test_flex_is_the_offline_class_and_a_clamped_priority_is_told() -> None:
    async def scenario(place: Place) -> None:
        await ask(place, CHAT, messages=says("fox"), max_tokens=1, service_tier="flex")
        await ask(place, CHAT, messages=says("fox"), max_tokens=1, slo_class="offline")
        clamped = await ask(place, CHAT, messages=says("fox"), max_tokens=1, priority=99)
        assert [request.is_offline for request in place.cluster.arrived] == [True, True, False]
        assert clamped.headers["penstock-notes"] == "priority_clamped"

    serve(scenario)


def test_token_ids_and_running_usage_are_told_where_asked() -> None:
    async def scenario(place: Place) -> None:
        options = {"continuous_usage_stats": True}
        ids = place.tokenizer.encode("one fox")
        whole = (await ask(place, CHAT, messages=says("one fox"), max_tokens=4, return_token_ids=True)).json()
        assert whole["prompt_token_ids"] == ids
        assert whole["choices"][0]["token_ids"] == [ids[index % len(ids)] for index in range(4)]
        text = (
            await ask(place, CHAT, messages=says("one fox"), max_tokens=4, stream=True, stream_options=options)
        ).text
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks_of(text)] == [1, 2, 3, 4, 4]

    serve(scenario)


def test_prompt_logprobs_are_told_of_all_tokens_but_the_first() -> None:
    async def scenario(place: Place) -> None:
        body = (await ask(place, CHAT, messages=says("one fox"), max_tokens=1, prompt_logprobs=1)).json()
        ids = place.tokenizer.encode("one fox")
        assert body["prompt_logprobs"][0] is None
        assert [str(token) in entry for token, entry in zip(ids[1:], body["prompt_logprobs"][1:], strict=True)]

    serve(scenario)


def test_without_a_template_a_chat_is_refused_not_guessed() -> None:
    async def scenario(place: Place) -> None:
        answer = await ask(place, CHAT, messages=says("fox"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert place.cluster.arrived == []

    serve(scenario, Setting(template=None))


def test_a_finished_request_is_told_to_the_scheduler_as_finished() -> None:
    async def scenario(place: Place) -> None:
        await ask(place, CHAT, messages=says("fox"), max_tokens=2)
        assert list(place.cluster.told_ends.values()) == [Outcome.FINISHED]

    serve(scenario)


def test_the_time_that_the_template_takes_is_part_of_the_requests_own() -> None:
    async def scenario(place: Place) -> None:
        render = place.gateway.chats.render

        async def slow(talk: Conversation) -> str:
            await asyncio.sleep(0.05)
            return await render(talk)

        place.gateway.chats.render = slow  # type: ignore[method-assign]
        await ask(place, CHAT, model="tiny", messages=says("fox"), max_tokens=1)
        (ledger,) = place.gateway.ledgers
        assert ledger.ttft_s is not None
        assert ledger.ttft_s >= 0.05

    serve(scenario)
