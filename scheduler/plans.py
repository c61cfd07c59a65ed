"""What a layout would do with a load: the closed forms of single nodes, put together.

On a node that does both, a step with a chunk of c prompt tokens takes longer than one of rows alone: by δ less what
hides, o·min(δ, rows + ε). With d requests per second decoding there, p prefilled there and n chunks in a prompt,
r = d·L·k·t seconds of a step are the rows', and a share φ = p·n·t of steps has a chunk; so the mean step t solves
t = a + r + φ·(δ - o·min(δ, r + ε)). What one answer sees of that varies: it lives for L steps, and chunks come in
runs of a whole prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.request import SLO
from scheduler.closed_forms import (
    ROWS_BESIDE,
    Load,
    NodeAbility,
    decode_rate_by_pool,
    decode_rate_by_tpot,
    max_rows_of,
    prefill_beside_s,
    prefill_rate_alone,
    prefill_rate_by_ttft,
    prefill_times,
    rate_by_link,
    share_taken,
)

BUSY_SHARE = 0.7
"""Of what a node could do at most: how busy it is taken to be where no rate at all meets the SLO."""

STEP_DOWN = 0.9
"""Rates that are tried below the offered one: admission may turn the rest away."""

NUM_STEPS_DOWN = 10

NUM_PACKINGS = 3
"""How often it is worked out anew how full steps are; more changes nothing by a per cent."""

GOOD_ENOUGH = 0.985


@dataclass(frozen=True, slots=True)
class Goal:
    """What requests are promised, and the share of them that must get it. `handoff_s`: of the first token's time."""

    slo: SLO
    target: float = 0.9
    handoff_s: float = 0.0

    @property
    def prefill_limit_s(self) -> float:
        """What is left for waiting and computing a prompt."""
        return self.slo.ttft_s - self.handoff_s


@dataclass(frozen=True, slots=True)
class Part:
    """Equal nodes that do the same: `prefill`, `decode` or `mixed`, with chunks of at most `chunk` prompt tokens."""

    role: str
    ability: NodeAbility
    chunk: int
    num: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """`attainment` of all that comes; `goodput_rps` of what is best let in; `capacity_rps` by sums of rates."""

    goodput_rps: float
    attainment: float
    capacity_rps: float


@dataclass(slots=True)
class Sums:
    """Rates of all nodes of a layout together: of those that only prefill, only decode, and of mixed ones if they did
    nothing else."""

    prefill: float = 0.0
    decode: float = 0.0
    mixed_prefill: float = 0.0
    mixed_decode: float = 0.0

    def rate(self) -> float:
        """Requests per second that go through both phases, mixed nodes dividing their time as is best."""
        ability = self.mixed_prefill, self.mixed_decode
        if not ability[0]:
            return min(self.prefill, self.decode + ability[1])
        if not ability[1]:
            return min(self.prefill + ability[0], self.decode)
        per_prefill, per_decode = 1.0 / ability[0], 1.0 / ability[1]
        rate = (1.0 + self.prefill * per_prefill + self.decode * per_decode) / (per_prefill + per_decode)
        if rate < self.prefill:
            return self.decode + ability[1]
        return self.prefill + ability[0] if rate < self.decode else rate


@dataclass(slots=True)
class Forecaster:
    """Forecasts for one load and one goal; what a node can do is worked out once."""

    load: Load
    goal: Goal
    _prefill: dict[NodeAbility, float] = field(default_factory=dict)
    _decode: dict[NodeAbility, float] = field(default_factory=dict)
    _mixed: dict[tuple[NodeAbility, int], tuple[float, float]] = field(default_factory=dict)

    # ── single nodes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prefill_rate(self, node: NodeAbility) -> float:
        """Of a node that only prefills."""
        if node not in self._prefill:
            rate = prefill_rate_by_ttft(node, self.load, self.goal.prefill_limit_s, self.goal.target)
            rate = rate or BUSY_SHARE * prefill_rate_alone(node, self.load)
            self._prefill[node] = min(rate, BUSY_SHARE * rate_by_link(node, self.load))
        return self._prefill[node]

    def decode_rate(self, node: NodeAbility) -> float:
        """Of a node that only decodes."""
        if node not in self._decode:
            self._decode[node] = min(self._rows_rate(node), BUSY_SHARE * rate_by_link(node, self.load))
        return self._decode[node]

    def _rows_rate(self, node: NodeAbility) -> float:
        by_pool = decode_rate_by_pool(node, self.load)
        return min(by_pool, decode_rate_by_tpot(node, self.load, self.goal.slo.tpot_s)) or BUSY_SHARE * by_pool

    def mixed_rates(self, node: NodeAbility, chunk: int) -> tuple[float, float]:
        """Of a mixed node: if all its spare time went to chunks, if all went to rows."""
        key = node, chunk
        if key not in self._mixed:
            decode = self._rows_rate(node)
            spare = 1.0 - node.costs.decode_fixed_s / self.goal.slo.tpot_s
            step = ChunkStep.of(node, self.load, chunk)
            by_tpot = max(spare, 0.0) / step.weight_s
            rows_s = node.row_s(self.load.mean_context) * max_rows_of(node, self.load) / 4
            busy_s = step.num * (node.costs.decode_fixed_s + rows_s + step.longer_s(rows_s))
            self._mixed[key] = min(by_tpot or math.inf, BUSY_SHARE / busy_s), decode
        return self._mixed[key]

    # ── layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def sums(self, parts: Sequence[Part]) -> Sums:
        """The rates of a layout's nodes together."""
        sums = Sums()
        for part in parts:
            if part.role == "prefill":
                sums.prefill += part.num * self.prefill_rate(part.ability)
            elif part.role == "decode":
                sums.decode += part.num * self.decode_rate(part.ability)
            else:
                prefill, decode = self.mixed_rates(part.ability, part.chunk)
                sums.mixed_prefill += part.num * prefill
                sums.mixed_decode += part.num * decode
        return sums

    def forecast(self, parts: Sequence[Part]) -> Forecast:
        """The best goodput up to the offered rate, and the share that is met of the whole of it."""
        layout = _Layout(self, parts)
        offered = self.load.rate_rps
        full = layout.attainment(offered)
        best = offered * full
        rate = min(offered, 1.3 * (1.0 + layout.overlap) * layout.rate)
        for _ in range(NUM_STEPS_DOWN if full < GOOD_ENOUGH else 0):
            goodput = rate * layout.attainment(rate)
            if goodput < 0.9 * best:
                break
            best, rate = max(best, goodput), rate * STEP_DOWN
        return Forecast(best, full, layout.rate)


@dataclass(frozen=True, slots=True)
class ChunkStep:
    """A step with a chunk, beside one without: how many of them a mean prompt takes, how much longer each is.

    By `grown_s`, which the chunk's tokens take, and `base_s`, where nothing hides. Of that, `overlap` hides behind rows
    that take so long, and behind `fixed_s` that belong to steps with rows only.
    """

    num: float
    grown_s: float
    base_s: float
    fixed_s: float
    overlap: float

    @property
    def more_s(self) -> float:
        """How much longer where nothing hides."""
        return self.grown_s + self.base_s

    @property
    def weight_s(self) -> float:
        """What a prompt takes of a mixed node's time where there are few rows."""
        return max(self.num * self.longer_s(0.0), 1e-9)

    def longer_s(self, rows_s: float) -> float:
        """How much longer the step is, beside rows that take so long."""
        return self.more_s - self.overlap * min(self.more_s, rows_s + self.fixed_s)

    def step_s(self, decode_s: float, prefills: float, rows_share: float) -> float:
        """The mean step of a node that prefills so many prompts per second, and whose rows take such a share of any
        step; infinite where no step is long enough. Two cases: the chunk is shorter than the rows, or longer."""
        chunks = prefills * self.num
        hidden = 1.0 - rows_share - chunks * self.more_s * (1.0 - self.overlap)
        line, square = 1.0 - rows_share - chunks * self.longer_s(0.0), self.overlap * chunks * rows_share
        if hidden <= 0.0 or (line <= 0.0 and not square):
            return math.inf
        if rows_share * decode_s >= (self.more_s - self.fixed_s) * hidden:
            return decode_s / hidden
        return 2.0 * decode_s / (line + math.sqrt(line * line + 4.0 * square * decode_s))

    @classmethod
    def of(cls, node: NodeAbility, load: Load, chunk: int) -> "ChunkStep":
        num = sum(math.ceil(max(tokens, 1.0) / chunk) for tokens, _ in load.computed) / len(load.computed)
        costs = node.costs
        lines = 1.0 + ROWS_BESIDE
        of_all_s = sum(tokens * costs.token_s(lines * min(tokens, chunk)) for tokens, _ in load.computed)
        tokens_s = of_all_s / len(load.computed)
        grown_s = (tokens_s + load.mean_pairs * costs.per_prefill_pair_s) / num
        fixed_s = costs.mixed_fixed_s
        return cls(num, grown_s, fixed_s - costs.decode_fixed_s, fixed_s - costs.prefill_fixed_s, costs.overlap)

    def packed(self, num: float) -> "ChunkStep":
        """The same prompts in other, fuller steps."""
        return replace(self, num=num, grown_s=self.grown_s * self.num / num)


class _Layout:
    """Parts under one load, at any rate of it; each kind of part has its share of both phases.

    `rate` is that of its sums of rates, which know nothing of an `overlap` of phases.
    """

    def __init__(self, forecaster: Forecaster, parts: Sequence[Part]) -> None:
        self._of, self._parts = forecaster, [part for part in parts if part.num]
        sums = forecaster.sums(self._parts)
        self._sums = sums
        self.rate = sums.rate()
        self.overlap = max((p.ability.costs.overlap for p in self._parts if p.role == "mixed"), default=0.0)
        self._to_prefill = _share(sums.prefill, self.rate, is_all=not sums.mixed_prefill)
        self._to_decode = _share(sums.decode, self.rate, is_all=not sums.mixed_decode)
        self._alone = _mean_times([(p, forecaster.load) for p in self._parts if p.role == "prefill"])
        prefills = [part for part in self._parts if part.role == "prefill"]
        self._num_alone = sum(part.num for part in prefills)
        self._link_rate = sum(part.num * rate_by_link(part.ability, forecaster.load) for part in prefills)

    def attainment(self, rate: float) -> float:
        """The share of requests that meet both targets at this rate; 0 where a queue only grows."""
        if not self.rate or not rate:
            return 0.0
        if not self._to_prefill:
            return self._divided(rate, 0.0, 0.0)
        best = self._divided(rate, self._to_prefill, self._to_prefill * self._taken(rate * self._to_prefill))
        if self._to_prefill < 1.0:
            taken = round(self._taken(rate), 4)
            best = max(best, self._divided(rate, 1.0, taken), self._divided(rate, taken, taken))
        return best

    def _taken(self, rate: float) -> float:
        """The share of so many prompts that nodes which only prefill take in time."""
        return share_taken(self._alone, rate, self._num_alone, self._of.goal.prefill_limit_s)

    def _divided(self, rate: float, to_prefill: float, in_time: float) -> float:
        """The same where nodes that only prefill get such a share of the prompts, `in_time` with so much of all."""
        if to_prefill and rate * to_prefill >= self._link_rate:
            return 0.0
        mixed_in_time, in_pace = self._mixed(rate, to_prefill)
        in_time += mixed_in_time
        for part in self._parts:
            if part.role == "decode":
                share = self._to_decode * self._of.decode_rate(part.ability) / self._sums.decode
                in_pace += share * part.num * _Node(self._of, part, 0.0, rate * share).in_pace()
        return in_time * in_pace

    def _mixed(self, rate: float, to_prefill: float) -> tuple[float, float]:
        """Shares of all requests that mixed nodes prefill in time, and decode in pace."""
        in_time = in_pace = 0.0
        for part in self._parts:
            if part.role != "mixed":
                continue
            of = self._of.mixed_rates(part.ability, part.chunk)
            prefills = (1.0 - to_prefill) * of[0] / self._sums.mixed_prefill
            decodes = (1.0 - self._to_decode) * of[1] / self._sums.mixed_decode
            node = _Node(self._of, part, rate * prefills, rate * decodes)
            in_time += part.num * prefills * node.in_time(part.num)
            in_pace += part.num * decodes * node.in_pace()
        return in_time, in_pace


def _share(rate: float, of: float, *, is_all: bool) -> float:
    if is_all:
        return 1.0
    return min(1.0, rate / of) if of else 0.0


def _mean_times(parts: Sequence[tuple[Part, Load]]) -> tuple[float, ...]:
    """Times of the load's prompts at a pool of nodes: each takes its share by its speed."""
    if not parts:
        return ()
    if len(parts) == 1:
        return prefill_times(parts[0][0].ability, parts[0][1], parts[0][0].chunk)
    columns = zip(*(prefill_times(part.ability, load, part.chunk) for part, load in parts), strict=True)
    weights = [part.num for part, _ in parts]
    return tuple(sum(weights) / sum(w / t for w, t in zip(weights, times, strict=True)) for times in columns)


class _Node:
    """One node with so many prompts and so many answers per second."""

    def __init__(self, of: Forecaster, part: Part, prefills: float, decodes: float) -> None:
        self._load, self._goal, self._part, self._prefills = of.load, of.goal, part, prefills
        node, load = part.ability, of.load
        self._row_s = node.row_s(load.mean_context) / node.num_stages
        self._chunk = ChunkStep.of(node, load, part.chunk) if prefills else ChunkStep(0.0, 0.0, 0.0, 0.0, 0.0)
        rows_share = decodes * load.mean_output * self._row_s
        self.step_s = self._packed_step_s(rows_share)
        self._rows = decodes * load.mean_output * self.step_s
        self._longer_s = self._chunk.longer_s(self._rows * self._row_s)
        moved, taken_in = 1.0 / rate_by_link(node, load), max(0.0, decodes - prefills)
        busy = taken_in * moved
        self._moved_s = moved * taken_in / max(decodes, 1e-9) / (1.0 - busy) if busy < 1.0 else math.inf

    def _packed_step_s(self, rows_share: float) -> float:
        """The mean step. Chunks of one prompt follow each other; short prompts that come within one step share the
        next, so the longer steps are, the fewer and the fuller are those with a chunk."""
        fixed_s, load = self._part.ability.costs.decode_fixed_s, self._load
        step_s = self._chunk.step_s(fixed_s, self._prefills, rows_share)
        tokens = self._prefills * sum(tokens for tokens, _ in load.computed) / len(load.computed)
        num = self._chunk.num
        for _ in range(NUM_PACKINGS):
            full, each = tokens * step_s / self._part.chunk, self._prefills * num * step_s
            self._is_full = full >= 1.0
            self._chunked = 1.0 - (1.0 - full) * math.exp(min(0.0, full - each)) if full < 1.0 else 1.0
            if self._is_full or not self._prefills:
                break
            self._chunk = self._chunk.packed(self._chunked / (self._prefills * step_s))
            step_s = self._chunk.step_s(fixed_s, self._prefills, rows_share)
        return step_s

    def in_time(self, num_servers: int) -> float:
        """The share of prompts that are prefilled in time, at so many nodes like this one."""
        if self.step_s == math.inf or self._is_full:
            return 0.0
        node, load, chunk = self._part.ability, self._load, self._part.chunk
        rows_s = self._row_s * self._rows
        times = tuple(prefill_beside_s(node, tokens, pairs, chunk, rows_s) for tokens, pairs in load.computed)
        return share_taken(times, self._prefills * num_servers, num_servers, self._goal.prefill_limit_s)

    def in_pace(self) -> float:
        """The share of answers that come as fast as promised, and whose rows find room."""
        if self.step_s == math.inf or self._is_full:
            return 0.0
        prefilling = min(1.0, self._chunked) * self._load.mean_prompt / self._load.mean_context
        room = max_rows_of(self._part.ability, self._load) - prefilling - self._rows
        fits = _normal(room / math.sqrt(max(self._rows, 1.0)))
        rows_var = self._row_s**2 * self._rows * self._load.context_spread
        chunk_var = self._longer_s**2 * self._chunked * (1.0 - self._chunked)
        run = self._chunk.num / max(1.0 - self._chunked, 1e-9)
        spare_s = self._goal.slo.tpot_s - self.step_s
        met = 0.0
        for length in self._load.output_tokens:
            deviation = math.sqrt(rows_var + chunk_var * min(1.0, run / length)) or 1e-9
            met += _normal((spare_s - self._moved_s / length) / deviation) if length > 1 else 1.0
        return fits * met / len(self._load.output_tokens)


def _normal(deviations: float) -> float:
    return 0.5 * (1.0 + math.erf(deviations / math.sqrt(2.0)))
