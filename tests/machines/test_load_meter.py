"""What the controller knows of the load: rates, lengths, and when they have just changed."""

from random import Random

import pytest

from core.events import RequestArrived
from core.ids import GatewayId, RequestId
from core.request import Prompt, Request, SamplingParams
from scheduler.lengths import LengthModel
from scheduler.load_meter import LoadMeter, MeterConfig


class Feed:
    """A meter, and requests for it."""

    def __init__(self, answer: int = 100) -> None:
        self.meter = LoadMeter(MeterConfig())
        self.lengths = LengthModel(answer)
        for _ in range(100):
            self.lengths.learn("", 0, answer)
        self.now, self.num, self.chance = 0.0, 0, Random(1)
        self.stepped_at: list[float] = []

    def run(self, seconds: float, rate_rps: float, prompt: int, ends_with: int = 0, shape: float = 1.0) -> "Feed":
        """Gamma arrivals (Poisson by default); with `ends_with` each answer ends at once with so many tokens."""
        end, tick = self.now + seconds, self.now + 0.25
        at = self.now
        while (at := at + self.chance.gammavariate(shape, 1.0 / (shape * rate_rps))) < end:
            while tick <= at:
                tick += 0.25
                self.stepped_at += [tick] if self.meter.has_stepped(tick) else []
            self.num += 1
            name = RequestId(f"r{self.num}")
            tokens = round(prompt * self.chance.uniform(0.5, 1.5))
            request = Request(name, Prompt(tokens), b"", SamplingParams(4096))
            self.meter.note(RequestArrived(request, GatewayId("g")), self.lengths, at)
            if ends_with:
                self.meter.note_finished(name, ends_with)
        self.now = end
        return self


def test_rate_and_lengths_are_those_that_came() -> None:
    load = Feed().run(60, 10, 1000).meter.load(60.0)
    assert load is not None
    assert load.rate_rps == pytest.approx(10, rel=0.2)
    assert load.mean_prompt == pytest.approx(1000, rel=0.1)
    assert load.mean_output == pytest.approx(100, rel=0.2)


def test_noise_is_no_step() -> None:
    assert Feed().run(300, 10, 1000).stepped_at == []


def test_bursts_are_no_steps_but_more_than_them_is() -> None:
    feed = Feed().run(600, 10, 1000, shape=0.1)
    assert [at for at in feed.stepped_at if at > 60.0] == []
    feed.run(20, 80, 1000, shape=0.1)
    assert [at for at in feed.stepped_at if at > 600.0], "more than bursts is a step"


@pytest.mark.parametrize(("rate", "prompt"), [(60, 1000), (10, 100), (10, 8000)])
def test_a_step_is_seen_within_seconds_and_forgets_what_was_before(rate: float, prompt: int) -> None:
    feed = Feed().run(60, 10, 1000).run(10, rate, prompt)
    assert 60.0 < feed.stepped_at[0] < 63.0
    load = feed.meter.load(70.0)
    assert load is not None
    assert load.mean_prompt == pytest.approx(prompt, rel=0.25)


def test_answers_that_ended_tell_their_length() -> None:
    load = Feed(answer=800).run(30, 10, 1000, ends_with=50).meter.load(30.0)
    assert load is not None
    assert load.mean_output == 50
