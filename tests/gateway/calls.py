"""Calls of the gateway's tests: asking, reading to the end, and one choice's answer put together."""

from dataclasses import dataclass, field

from cluster.api.v1 import inference_pb2 as pb
from tests.gateway.fake_cluster import Place

TEXT = "the fox für 漢字 😀"


def ask(text: str = TEXT, max_tokens: int = 40, **sampling: object) -> pb.GenerateRequest:
    """A request; the names are those of SamplingParams."""
    params = pb.SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return pb.GenerateRequest(text=text, sampling=params)


async def answer(place: Place, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    """All responses of a call."""
    return [response async for response in place.client.generate(request)]


@dataclass
class Choice:
    """One choice of a call, put together; its responses must follow each other without gap or repeat."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: str = ""

    def extend(self, response: pb.GenerateResponse) -> None:
        assert not self.finish_reason, "a response after the choice's last"
        assert response.index == len(self.token_ids)
        assert not response.logprobs or len(response.logprobs) == len(response.token_ids)
        assert not response.prompt_logprobs or (response.index, response.choice) == (0, 0)
        self.token_ids += response.token_ids
        self.text += response.text
        self.logprobs += response.logprobs
        self.prompt_logprobs += response.prompt_logprobs
        self.finish_reason, self.stop_reason = response.finish_reason, response.stop_reason


def choices_of(responses: list[pb.GenerateResponse], num_choices: int = 1) -> list[Choice]:
    """The choices of a call that ended well; usage and timing stand in its very last response only."""
    choices = [Choice() for _ in range(num_choices)]
    for response in responses:
        choices[response.choice].extend(response)
    assert all(choice.finish_reason for choice in choices)
    assert [response.HasField("usage") for response in responses] == [False] * (len(responses) - 1) + [True]
    assert [response.HasField("timing") for response in responses] == [False] * (len(responses) - 1) + [True]
    assert responses[-1].usage.completion_tokens == sum(len(choice.token_ids) for choice in choices)
    return choices
