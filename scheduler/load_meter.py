"""What comes in and goes out lately: rates and lengths for planning, and whether they have just changed."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log, sqrt
from typing import Protocol

from core.events import RequestArrived
from core.ids import NodeId, RequestId
from core.request import SLO
from core.stats import NodeStats
from scheduler.bursts import Bursts
from scheduler.closed_forms import Load
from scheduler.lengths import PRIOR_WEIGHT

GOLDEN = 0.618033988749895
"""Its multiples, less their whole parts, are spread evenly however many of them there are."""

NUM_LENGTHS = 16

GRAINS = 8
"""Into so many parts a step's window is divided: sums over these are kept instead of looking at every request."""

DECODED_S = 4.0
"""Over so long it is measured how many tokens rows answer."""

SHORTER = 1.2
"""Answers are taken to be as long as those that end now by this measure, times this, where that is shorter."""


class Lengths(Protocol):
    """What is known of answers' lengths."""

    @property
    def num_seen(self) -> int:
        """Answers that it has learned from."""
        ...

    def expected_output(self, tenant: str, priority: int, quantile: float | None = None) -> float:
        """Tokens that a share `quantile` of the answers of this tenant and class do not exceed."""
        ...


@dataclass(frozen=True, slots=True)
class MeterConfig:
    """`window_s` is looked back for a plan, `step_window_s` for a step; a step needs `step_sigmas` standard deviations
    and a change by `step_share`. Fewer than `min_arrivals`, or less than `min_span_s` of them, say nothing; nor does
    the load before as many answers have ended, for `answers_s` at most: how long answers are is half of it."""

    window_s: float = 30.0
    step_window_s: float = 2.0
    step_sigmas: float = 4.5
    step_share: float = 0.5
    min_arrivals: int = 8
    min_span_s: float = 1.0
    answers_s: float = 2.0


@dataclass(slots=True)
class Arrived:
    """One request: when it came, how long its prompt is, how long its answer may be or was."""

    request: RequestId
    at: float
    prompt_tokens: int
    output_tokens: int
    slo: SLO | None


class LoadMeter:
    """Counts arrivals, ends, and what nodes report.

    Owns: the arrivals of the last `window_s`, since the last step at most (sums of them go further back than the last
    `max_arrivals`), and sums of what nodes did.
    """

    def __init__(self, config: MeterConfig, max_arrivals: int = 4096) -> None:
        self._config = config
        self._max_arrivals = max_arrivals
        self._arrived: deque[Arrived] = deque()
        self._open: dict[RequestId, Arrived] = {}
        self._prompt_logs = self._prompt_squares = 0.0
        self._grains: deque[_Span] = deque()
        self.bursts = Bursts()
        self._num_seen = 0
        self._num_answers = 0
        self._began_at = 0.0
        self._since: float | None = None
        self._hit_share = 0.0
        self._stats: dict[NodeId, NodeStats] = {}
        self._num_decoded = 0
        self._num_finished = 0
        self._marks: deque[tuple[float, int, int]] = deque()

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, event: RequestArrived, lengths: Lengths, now: float) -> None:
        """A request, taken or refused: both are load."""
        request = event.request
        self._num_seen += 1
        place = (self._num_seen * GOLDEN) % 1.0
        expected = lengths.expected_output(request.tenant, request.priority, 0.02 + 0.96 * place)
        tokens = max(1, min(round(expected), request.sampling.max_tokens))
        self._keep(Arrived(request.id, now, max(1, request.prompt.num_tokens), tokens, request.slo))
        self._num_answers = lengths.num_seen
        if self._since is None:
            self._since = self._began_at = now

    def note_finished(self, request: RequestId, num_tokens: int) -> None:
        """An answer is complete; from now on its length is known."""
        self._num_finished += 1
        each = self._open.pop(request, None)
        if each is not None and num_tokens:
            each.output_tokens = num_tokens

    def note_stats(self, nodes: Mapping[NodeId, NodeStats], now: float) -> None:
        """What nodes have counted by now: tokens that rows answered, and how much of the prompts caches had."""
        prompt = cached = 0
        for node, stats in nodes.items():
            before = self._stats.get(node)
            if before is not None:
                self._num_decoded += max(0, stats.work.num_rows - before.work.num_rows)
                prompt += stats.num_prompt_tokens - before.num_prompt_tokens
                cached += stats.num_cached_tokens - before.num_cached_tokens
        self._stats = dict(nodes)
        if prompt > 0:
            weight = min(0.5, prompt / 65536)
            self._hit_share += weight * (min(max(cached / prompt, 0.0), 0.99) - self._hit_share)
        self._marks.append((now, self._num_decoded, self._num_finished))
        while len(self._marks) > 2 and now - self._marks[1][0] > DECODED_S:
            self._marks.popleft()

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, now: float) -> Load | None:
        """Mean rate and lengths; None where too little came."""
        self._forget(now)
        if self._since is None or len(self._arrived) < self._config.min_arrivals:
            return None
        if self._num_answers < self._config.min_arrivals and now - self._began_at < self._config.answers_s:
            return None
        began_at = max(self._since, now - self._config.window_s)
        if len(self._arrived) == self._max_arrivals:
            began_at = self._arrived[0].at
        span_s, num = now - began_at, len(self._arrived) - (self._arrived[0].at <= began_at)
        if span_s < self._config.min_span_s:
            return None
        prompts = _spread(sorted(each.prompt_tokens for each in self._arrived))
        outputs = _spread(sorted(each.output_tokens for each in self._arrived))
        load = Load(num / span_s, prompts, outputs, round(self._hit_share, 3))
        factor = self._output_factor(load)
        return replace(load, output_tokens=tuple(max(1, round(n * factor)) for n in outputs))

    def _output_factor(self, load: Load) -> float:
        """By how much answers seem shorter now than was learned: fewer tokens were answered for each answer that ended
        than an answer is believed to have."""
        if not self._marks or self._marks[-1][0] - self._marks[0][0] < DECODED_S / 2:
            return 1.0
        decoded, finished = (self._marks[-1][i] - self._marks[0][i] for i in (1, 2))
        if not decoded or finished < self._config.min_arrivals:
            return 1.0
        return min(1.0, SHORTER * decoded / finished / load.mean_output)

    def doubt(self, load: Load) -> float:
        """How far the ratio of prompts' to answers' tokens may be from what `load`, the last one, says: the standard
        deviation of its logarithm, as the means of so many prompts and answers vary."""
        of_prompts = load.context_spread - 1.0
        of_answers = sum(n * n for n in load.output_tokens) / len(load.output_tokens) / load.mean_output**2 - 1.0
        return sqrt(of_prompts / len(self._arrived) + of_answers / (self._num_answers + PRIOR_WEIGHT))

    def slo(self) -> SLO | None:
        """What most requests of late were promised; None where nothing was."""
        counts = Counter(each.slo for each in self._arrived if each.slo is not None)
        return counts.most_common(1)[0][0] if counts else None

    @property
    def num_arrivals(self) -> int:
        """Those of the window."""
        return len(self._arrived)

    def arrivals(self) -> tuple[Arrived, ...]:
        """Those of the window, oldest first."""
        return tuple(self._arrived)

    def has_stepped(self, now: float) -> bool:
        """Whether tokens in or out came at another rate just now than before; from then on only what came since counts.

        Compares the last `step_window_s` with all such spans before: their own spread says what is chance.
        """
        self._forget(now)
        if self._has_other_prompts():
            self._since = self._arrived[-self._config.min_arrivals].at
        elif self._has_other_tokens(now):
            self._since = now - self._config.step_window_s
        else:
            return False
        self._forget(now)
        return True

    def _has_other_tokens(self, now: float) -> bool:
        spans = self._whole_spans(now)
        if len(spans) < 5:
            return False
        dispersion = self.bursts.dispersion()
        return self._differs([(span.prompt, span.prompt_squares) for span in spans], dispersion) or self._differs(
            [(span.output, span.output_squares) for span in spans], dispersion
        )

    def _differs(self, spans: list[tuple[int, int]], dispersion: float) -> bool:
        (last, last_squares), *before = spans
        mean = sum(each for each, _ in before) / len(before)
        among = sum((each - mean) ** 2 for each, _ in before) / (len(before) - 1)
        squares = sum(each for _, each in before) / len(before)
        # Compound Poisson: the squares, and more where bursts are compounded; one huge prompt is no step.
        by_chance = max(among, squares * dispersion, last_squares / 4)
        change = abs(last - mean)
        config = self._config
        return change > config.step_sigmas * by_chance**0.5 and change > config.step_share * mean

    def _whole_spans(self, now: float) -> list["_Span"]:
        """Sums over the last `step_window_s` and over as long stretches before it, newest first."""
        oldest = now - self._config.window_s if self._since is None else max(self._since, now - self._config.window_s)
        width, grain = self._config.step_window_s, self._config.step_window_s / GRAINS
        num = int((now - oldest) / width)
        spans = [_Span(now) for _ in range(num)]
        for grained in reversed(self._grains):
            index = int((now - grained.at - grain / 2) / width)
            if index >= num:
                break
            spans[max(index, 0)].add(grained)
        return spans

    def _has_other_prompts(self) -> bool:
        """Whether the last few prompts are of another length than those before, at whatever rate they come.

        By their logarithms: lengths spread over orders of magnitude, and one that is huge is no step.
        """
        num, total = self._config.min_arrivals, len(self._arrived)
        if total < 4 * num:
            return False
        last = [log(self._arrived[i].prompt_tokens) for i in range(-num, 0)]
        mean = (self._prompt_logs - sum(last)) / (total - num)
        among = (self._prompt_squares - sum(n * n for n in last)) / (total - num) - mean * mean
        recent = sum(last) / num
        spread = max(among, sum((n - recent) ** 2 for n in last) / (num - 1), 0.0)
        change = abs(recent - mean)
        config = self._config
        return change > config.step_sigmas * (spread / num) ** 0.5 and change > log(1.0 + config.step_share)

    def _forget(self, now: float) -> None:
        if self._since is None:
            return
        oldest = max(self._since, now - self._config.window_s)
        while self._arrived and self._arrived[0].at < oldest:
            self._drop_oldest()
        while self._grains and self._grains[0].at < oldest:
            self._grains.popleft()

    def _drop_oldest(self) -> None:
        oldest = self._arrived.popleft()
        self._open.pop(oldest.request, None)
        self._prompt_logs -= log(oldest.prompt_tokens)
        self._prompt_squares -= log(oldest.prompt_tokens) ** 2

    def _keep(self, each: Arrived) -> None:
        if len(self._arrived) == self._max_arrivals:
            self._drop_oldest()
        self._arrived.append(each)
        self._open[each.request] = each
        self._prompt_logs += log(each.prompt_tokens)
        self._prompt_squares += log(each.prompt_tokens) ** 2
        grain_s = self._config.step_window_s / GRAINS
        if not self._grains or each.at - self._grains[-1].at >= grain_s:
            self._grains.append(_Span(each.at))
        self._grains[-1].note(each)
        self.bursts.note(each.at)


@dataclass(slots=True)
class _Span:
    """Sums over what came from `at` on for a while."""

    at: float
    prompt: int = 0
    prompt_squares: int = 0
    output: int = 0
    output_squares: int = 0

    def note(self, each: Arrived) -> None:
        self.prompt += each.prompt_tokens
        self.prompt_squares += each.prompt_tokens**2
        self.output += each.output_tokens
        self.output_squares += each.output_tokens**2

    def add(self, other: "_Span") -> None:
        self.prompt += other.prompt
        self.prompt_squares += other.prompt_squares
        self.output += other.output
        self.output_squares += other.output_squares


def _spread(ordered: list[int]) -> tuple[int, ...]:
    """`NUM_LENGTHS` values that stand for the sorted ones: the mean of each part of them, so that the whole keeps its
    mean."""
    num = len(ordered)
    bounds = [round(i * num / NUM_LENGTHS) for i in range(NUM_LENGTHS + 1)]
    parts = [ordered[low:high] or [ordered[min(low, num - 1)]] for low, high in pairwise(bounds)]
    return tuple(max(1, round(sum(part) / len(part))) for part in parts)
