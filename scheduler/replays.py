"""What-if: the last arrivals replayed under a few layouts, and what the answers say of the closed forms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.commands import Tell
from core.ids import PLANNER
from core.mix import NodeSpec
from core.request import SLO
from core.whatif import WhatIfAnswered, WhatIfAsked
from scheduler.closed_forms import Load
from scheduler.layouts import Option
from scheduler.load_meter import Arrived

BOUNDS = (0.2, 3.0)
"""How far an answer may lead a forecast."""

NEWS = 0.5
"""What an answer weighs beside those before it: one sample of arrivals says little of a layout near its limit."""


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """At most `max_candidates` layouts are replayed with `max_arrivals` requests each, which must span `min_span_s`;
    again after `interval_s` at the earliest; while nothing seems better than what is, after twice as long each time, up
    to `max_interval_s`. For `patience_s` a change waits for an answer; after `lasts_s` an answer says nothing any more.
    """

    max_candidates: int = 5
    max_arrivals: int = 400
    min_span_s: float = 8.0
    interval_s: float = 15.0
    max_interval_s: float = 240.0
    patience_s: float = 6.0
    lasts_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay is held to: the load that options were forecast for, promises, and how fast KV moves."""

    load: Load
    slo: SLO
    bytes_per_s: float


class Replays:
    """Owns: the open question, the last answer, and how often in a row nothing was better than what is. `num_stale`
    answers came to questions that were no longer open."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._num_asked = 0
        self._asked_at = float("-inf")
        self._num_settled = 0
        self._open: tuple[Option, ...] = ()
        self._answered_at = float("-inf")
        self._by_key: dict[tuple[tuple[str, int], ...], tuple[frozenset[str], float]] = {}
        self._by_kind: dict[frozenset[str], float] = {}
        self.num_stale = 0

    def forget(self) -> None:
        """The load or the nodes are others now: what was asked and answered is of the past."""
        self._open, self._by_key, self._by_kind = (), {}, {}
        self._asked_at = self._answered_at = float("-inf")
        self._num_settled = 0

    def is_due(self, now: float, *, is_settled: bool) -> bool:
        """Whether to ask again; `is_settled`: nothing seems better than what is."""
        if not is_settled:
            self._num_settled = 0
        since_s, config = now - self._asked_at, self.config
        return since_s >= min(config.max_interval_s, config.interval_s * 2.0**self._num_settled)

    def knows(self, option: Option) -> bool:
        """Whether an answer speaks of this very layout."""
        return option.key in self._by_key

    def is_waiting(self, now: float) -> bool:
        """Whether an answer is still worth waiting for."""
        return bool(self._open) and now - self._asked_at < self.config.patience_s

    def ask(
        self,
        specs: Sequence[NodeSpec],
        options: Sequence[Option],
        arrived: Sequence[Arrived],
        under: Replayed,
        now: float,
    ) -> list[Tell]:
        """Asks what the first few options would have done, at the rate they were forecast for. Nothing where too little
        came to show anything."""
        config, load = self.config, under.load
        last = arrived[-config.max_arrivals :]
        if len(last) < 2 or last[-1].at - last[0].at < config.min_span_s or len(options) < 2:
            return []
        speed = load.rate_rps * (last[-1].at - last[0].at) / len(last)
        longer = load.mean_output * len(last) / sum(each.output_tokens for each in last)
        self._num_asked += 1
        self._asked_at, self._open = now, tuple(options[: config.max_candidates])
        self._num_settled += 1
        asked = WhatIfAsked(
            self._num_asked,
            tuple(specs),
            tuple(option.mixes for option in self._open),
            tuple((each.at - last[0].at) / speed for each in last),
            tuple(each.prompt_tokens for each in last),
            tuple(max(1, round(each.output_tokens * longer)) for each in last),
            load.hit_share,
            under.slo,
            under.bytes_per_s,
        )
        return [Tell(PLANNER, asked)]

    def take(self, answer: WhatIfAnswered, now: float) -> bool:
        """What the planner found; False where nobody waits for it any more."""
        if answer.ask != self._num_asked or len(answer.goodputs_rps) != len(self._open) or not self._open:
            self.num_stale += 1
            self._open = () if answer.ask == self._num_asked else self._open
            return False
        factors = [
            min(BOUNDS[1], max(BOUNDS[0], replayed / max(option.forecast.goodput_rps, 1e-9)))
            for option, replayed in zip(self._open, answer.goodputs_rps, strict=True)
        ]
        if now - self._answered_at > self.config.lasts_s:
            self._by_key.clear()
        for option, factor in zip(self._open, factors, strict=True):
            before = self._by_key.get(option.key, (option.roles, factor))[1]
            self._by_key[option.key] = option.roles, before + NEWS * (factor - before)
        kinds: dict[frozenset[str], list[float]] = {}
        for kind, factor in self._by_key.values():
            kinds.setdefault(kind, []).append(factor)
        self._by_kind = {kind: sum(of) / len(of) for kind, of in kinds.items()}
        self._answered_at, self._open = now, ()
        return True

    def corrected(self, option: Option, rate_rps: float, now: float) -> Option:
        """The option, its forecast times what replays said of it, or of those with its roles, or of all; never more
        than comes."""
        if now - self._answered_at > self.config.lasts_s or not self._by_kind:
            return option
        overall = sum(self._by_kind.values()) / len(self._by_kind)
        kind = option.roles, self._by_kind.get(option.roles, overall)
        factor = self._by_key.get(option.key, kind)[1]
        was = option.forecast
        goodput, attainment = min(rate_rps, was.goodput_rps * factor), min(1.0, was.attainment * factor)
        forecast = replace(was, goodput_rps=goodput, attainment=attainment)
        return replace(option, forecast=forecast, trust=1.0 if option.key in self._by_key else option.trust)
