"""Completions: prompts in every form, logprobs in columns, echo."""

import asyncio

import openai
import pytest

from core.request import unpack_tokens
from tests.openai.asking import COMPLETIONS, TEXT, ask, chunks_of, client_of, expected
from tests.openai.serving import Place, Setting, serve


def test_a_prompt_may_be_text_texts_ids_or_lists_of_ids() -> None:
    async def scenario(place: Place) -> None:
        ids = place.tokenizer.encode(TEXT)
        async with client_of(place) as client:
            for prompt in (TEXT, [TEXT, "a dog"], ids, [ids, [5, 6, 7]]):
                done = await client.completions.create(model="tiny", prompt=prompt, max_tokens=20)
                assert done.choices[0].text == expected(place, TEXT, 20)
                assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
        sent = [unpack_tokens(request.token_ids) for request in place.cluster.arrived]
        assert sent == [tuple(it) for it in (ids, ids, place.tokenizer.encode("a dog"), ids, ids, [5, 6, 7])]

    serve(scenario)


def test_several_prompts_with_several_choices_are_numbered_in_order_and_counted_once() -> None:
    async def scenario(place: Place) -> None:
        fields = {"prompt": ["one fox", "a dog"], "n": 2, "max_tokens": 5}
        body = (await ask(place, COMPLETIONS, **fields)).json()
        texts = [expected(place, prompt, 5, choice) for prompt in ("one fox", "a dog") for choice in range(2)]
        assert [choice["text"] for choice in body["choices"]] == texts
        num_prompt_tokens = sum(len(place.tokenizer.encode(prompt)) for prompt in ("one fox", "a dog"))
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (num_prompt_tokens, 20)
        streamed = [""] * 4
        for chunk in chunks_of((await ask(place, COMPLETIONS, **fields, stream=True)).text):
            streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert streamed == texts

    serve(scenario)


def test_the_length_is_sixteen_where_none_is_named() -> None:
    async def scenario(place: Place) -> None:
        await ask(place, COMPLETIONS, prompt="fox")
        await ask(place, COMPLETIONS, prompt="fox", min_tokens=20)
        assert [request.sampling.max_tokens for request in place.cluster.arrived] == [16, 20]

    serve(scenario)


def test_logprobs_are_columns_with_offsets_into_the_text() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            done = await client.completions.create(model="tiny", prompt="one fox", max_tokens=9, logprobs=2)
            stream = await client.completions.create(
                model="tiny", prompt="one fox", max_tokens=9, logprobs=2, stream=True
            )
            parts = [chunk.choices[0].logprobs async for chunk in stream]
        (choice,) = done.choices
        told = choice.logprobs
        assert told is not None and told.tokens is not None and told.text_offset is not None
        assert "".join(told.tokens) == choice.text
        assert all(
            choice.text[place:].startswith(token) for place, token in zip(told.text_offset, told.tokens, strict=True)
        )
        assert told.token_logprobs == [-2 - place / 1024 for place in range(9)]
        assert all(len(top) in (2, 3) for top in told.top_logprobs or ())
        assert [offset for part in parts if part for offset in part.text_offset or ()] == told.text_offset
        assert [token for part in parts if part for token in part.tokens or ()] == told.tokens

    serve(scenario)


def test_echo_puts_the_prompt_first_with_its_logprobs_where_asked() -> None:
    async def scenario(place: Place) -> None:
        plain = (await ask(place, COMPLETIONS, prompt="one fox", max_tokens=3, echo=True)).json()["choices"][0]
        assert plain["text"] == "one fox" + expected(place, "one fox", 3)
        ids = place.tokenizer.encode("one fox")
        scored = (await ask(place, COMPLETIONS, prompt=ids, max_tokens=3, echo=True, logprobs=1)).json()["choices"][0]
        assert scored["text"] == plain["text"]
        told = scored["logprobs"]
        assert "".join(told["tokens"]) == scored["text"]
        assert told["token_logprobs"][0] is None
        assert all(logprob is not None for logprob in told["token_logprobs"][1:])
        assert len(told["tokens"]) == len(ids) + 3
        text = (await ask(place, COMPLETIONS, prompt="one fox", max_tokens=3, echo=True, stream=True)).text
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks_of(text)) == plain["text"]

    serve(scenario)


def test_one_refused_prompt_refuses_them_all_and_leaves_nothing_open() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.completions.create(model="tiny", prompt=[[5, 6], [5, 300]], max_tokens=400)
        assert refused.value.code == "invalid_token_id"
        assert place.gateway.streams.is_idle()

    serve(scenario)


def test_prompt_logprobs_stand_in_every_choice_of_their_prompt() -> None:
    async def scenario(place: Place) -> None:
        body = (await ask(place, COMPLETIONS, prompt=["one fox", "a"], max_tokens=1, prompt_logprobs=0)).json()
        counts = [len(choice["prompt_logprobs"]) for choice in body["choices"][:1]]
        assert counts == [len(place.tokenizer.encode("one fox"))]

    serve(scenario)


def test_thousands_of_scores_are_told_and_the_loop_goes_on_meanwhile() -> None:
    async def scenario(place: Place) -> None:
        ids = [5 + index % 200 for index in range(6_000)]
        fields = {"prompt": ids, "max_tokens": 2, "echo": True, "logprobs": 3}
        answer, beside = await asyncio.gather(ask(place, COMPLETIONS, **fields), place.client.get("/health"))
        assert beside.status_code == 200
        told = answer.json()["choices"][0]["logprobs"]
        assert {len(column) for column in told.values()} == {6_002}

    serve(scenario, Setting(max_model_len=8_000))
