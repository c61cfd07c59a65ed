"""Every layout worth a thought: what the nodes could accept, and what each would do with the load.

Nodes stand in the order of how much better they prefill than decode; the first ones prefill, the last ones decode,
those between do both, with one chunk size. Exchanging any two of them would make it worse, so three numbers are all
there is to search. Sums of rates screen them; the best of each sort are then forecast in full.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from core.ids import NodeId
from core.mix import Mix
from scheduler.closed_forms import NodeAbility
from scheduler.plans import Forecast, Forecaster, Part, Sums

MIN_CHUNK = 32
MAX_CHUNK_SIZES = 7
STAYS = 0.25
"""How much better (as a logarithm) another node must suit a role to take it from one that has it."""

ROOM_WEIGHT = 0.1
"""What a layout is worth more that could serve twice the load: loads are burstier than they look."""

TRUST_BESIDE_DECODE = 0.93
"""What a forecast is worth of mixed nodes beside some that only decode: formulas divide rows among them as is best,
routing not always. By runs of four simulated nodes; a replay knows better, and then counts in full."""

ENUMERATED = 12
"""Up to so many free nodes, all divisions of those that are not mixed are screened; above, those near the balance."""

FINE = 24
"""From so many free nodes on, numbers of mixed ones are screened in larger strides; neighbours of the best follow."""


@dataclass(frozen=True, slots=True)
class Floors:
    """So many nodes, at least, must accept each phase, and so many both."""

    prefill: int = 1
    decode: int = 1
    mixed: int = 0


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One node, what it accepts now, and whether that may be changed."""

    node: NodeId
    ability: NodeAbility
    mix: Mix
    is_free: bool = True


@dataclass(frozen=True, slots=True)
class Option:
    """A mix for every node, and the forecast. `kind`: `aggregated`, `disaggregated` or `between`. `trust`: what the
    forecast is worth, below 1 for layouts that ask more of routing than the formulas know."""

    mixes: tuple[Mix, ...]
    kind: str
    forecast: Forecast
    trust: float = 1.0

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        """What it is, epochs aside."""
        return tuple(accepted(mix) for mix in self.mixes)

    @property
    def roles(self) -> frozenset[str]:
        """What its nodes do, closed ones aside."""
        return roles_of(self.mixes)

    def score(self, planned_rps: float) -> float:
        """Goodput, and a little more where there is room for more than what is planned for, up to twice that."""
        room = self.forecast.capacity_rps / planned_rps - 1.0
        return self.trust * self.forecast.goodput_rps * (1.0 + ROOM_WEIGHT * min(1.0, max(0.0, room)))


@dataclass(frozen=True, slots=True)
class Shape:
    """The first `num_prefill` nodes in order prefill, the next `num_mixed` do both by such chunks, the rest decode."""

    num_prefill: int
    num_mixed: int
    chunk: int


def accepted(mix: Mix) -> tuple[str, int]:
    """What of a mix tells it from others: the chunk size does where chunks and rows share steps."""
    return mix.role, mix.prefill_tokens_per_step if mix.role == "mixed" else 0


def kind_of(mixes: Sequence[Mix]) -> str:
    """The word for a layout; closed nodes do not count."""
    roles = roles_of(mixes)
    return "aggregated" if roles == {"mixed"} else "between" if "mixed" in roles else "disaggregated"


def trust_of(mixes: Sequence[Mix]) -> float:
    """What the forecast of a layout is worth."""
    return TRUST_BESIDE_DECODE if roles_of(mixes) >= {"mixed", "decode"} else 1.0


def roles_of(mixes: Sequence[Mix]) -> frozenset[str]:
    """What nodes do, closed ones aside."""
    return frozenset(mix.role for mix in mixes) - {"closed"}


@dataclass(slots=True)
class Search:
    """All options of some nodes under one load."""

    nodes: Sequence[PlanNode]
    forecaster: Forecaster
    floors: Floors = Floors()
    _kinds: list[NodeAbility] = field(default_factory=list, init=False)
    _kind_of: dict[NodeId, int] = field(default_factory=dict, init=False)
    _order: list[PlanNode] = field(init=False)
    _pinned: list[PlanNode] = field(init=False)
    _found: dict[tuple[tuple[str, int], ...], Option] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        numbers: dict[NodeAbility, int] = {}
        for node in self.nodes:
            self._kind_of[node.node] = numbers.setdefault(node.ability, len(numbers))
        self._kinds = list(numbers)
        self._order = sorted((n for n in self.nodes if n.is_free), key=self._suits_prefill)
        self._pinned = [node for node in self.nodes if not node.is_free]

    def current(self) -> Option:
        """What is."""
        return self._option(tuple(node.mix for node in self.nodes))

    def options(self) -> list[Option]:
        """What is, the best aggregated, disaggregated and between, and neighbours of the best and of the best
        disaggregated; best first."""
        self.current()
        for shape in self._screened():
            self._option(self._mixes(shape))
        ordered = sorted(self._found.values(), key=lambda option: -option.forecast.goodput_rps)
        apart = next((option for option in ordered if option.kind == "disaggregated"), ordered[0])
        for shape in (*self._around(ordered[0]), *self._around(apart)):
            self._option(self._mixes(shape))
        return sorted(self._found.values(), key=lambda option: -option.forecast.goodput_rps)

    def forecast(self, mixes: tuple[Mix, ...]) -> Option:
        """One layout, whether it was searched or not."""
        return self._option(mixes)

    # ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _screened(self) -> list[Shape]:
        """The best by sums of rates: apart, and with each chunk size all mixed and some mixed."""
        best: dict[tuple[str, int], tuple[float, Shape]] = {}
        num, is_covered, share = len(self._order), self._coverage(), self._prefill_share()
        for chunk in self._chunks():
            rate_of = self._rates(chunk)
            for num_mixed in sorted({*range(0, num + 1, 1 + num // FINE), num}):
                sort = "apart" if not num_mixed else "together" if num_mixed == num else "between"
                key = sort, chunk if num_mixed else 0
                for num_prefill in _divisions(num - num_mixed, num, share):
                    shape = Shape(num_prefill, num_mixed, chunk)
                    if not is_covered(shape):
                        continue
                    rate = rate_of(shape)
                    if key not in best or rate > best[key][0]:
                        best[key] = rate, shape
        return [shape for _, shape in best.values()]

    def _around(self, option: Option) -> Iterator[Shape]:
        """The neighbours of the best one: a node more or less of each sort, chunks half as large again or smaller."""
        free = [mix for node, mix in zip(self.nodes, option.mixes, strict=True) if node.is_free]
        roles = Counter(mix.role for mix in free)
        chunk = next((m.prefill_tokens_per_step for m in free if m.role == "mixed"), self._chunks()[0])
        prefill, mixed = roles["prefill"], roles["mixed"]
        near = [(prefill - 1, mixed), (prefill + 1, mixed), (prefill, mixed - 1), (prefill, mixed + 1)]
        near += [(prefill - 1, mixed + 1), (prefill + 1, mixed - 1)]
        shapes = [Shape(p, m, chunk) for p, m in near]
        if mixed:
            largest = self._chunks()[0]
            now = {n.mix.prefill_tokens_per_step for n in self.nodes if n.is_free and n.mix.role == "mixed"}
            others = {_rounded(chunk * 1.41), _rounded(chunk / 1.41)} | now
            shapes += [Shape(prefill, mixed, c) for c in sorted(others) if MIN_CHUNK <= c <= largest]
        is_covered = self._coverage()
        fits = (s for s in shapes if s.num_prefill >= 0 <= s.num_mixed and s.num_prefill + s.num_mixed <= len(free))
        return (shape for shape in fits if is_covered(shape))

    def _chunks(self) -> list[int]:
        """Chunk sizes, halved from the largest that all free nodes take."""
        largest = min((node.ability.max_prefill_tokens for node in self._order), default=MIN_CHUNK)
        sizes = [largest]
        while len(sizes) < MAX_CHUNK_SIZES and sizes[-1] >= 2 * MIN_CHUNK:
            sizes.append(_rounded(sizes[-1] / 2))
        return sizes

    def _prefill_share(self) -> float:
        """The share of all free nodes that would prefill if each did one thing only."""
        prefill = sum(self.forecaster.prefill_rate(self._ability(node)) for node in self._order)
        decode = sum(self.forecaster.decode_rate(self._ability(node)) for node in self._order)
        return decode / (prefill + decode) if prefill + decode else 0.5

    def _rates(self, chunk: int) -> "_Rates":
        of, order = self.forecaster, [self._kind_of[node.node] for node in self._order]
        mixed = [of.mixed_rates(kind, min(chunk, kind.max_prefill_tokens)) for kind in self._kinds]
        columns = (
            [of.prefill_rate(kind) for kind in self._kinds],
            [of.decode_rate(kind) for kind in self._kinds],
            [prefill for prefill, _ in mixed],
            [decode for _, decode in mixed],
        )
        pinned = of.sums(self._parts((node, node.mix) for node in self._pinned))
        return _Rates(pinned, *(list(accumulate((column[i] for i in order), initial=0.0)) for column in columns))

    def _coverage(self) -> Callable[[Shape], bool]:
        """Whether a shape keeps the floors, those nodes counted that may not be changed."""
        prefill = sum(node.mix.accepts_prefill for node in self._pinned)
        decode = sum(node.mix.accepts_decode for node in self._pinned)
        num = len(self._order)
        floors = min(self.floors.prefill, num + prefill), min(self.floors.decode, num + decode)
        mixed = min(num, self.floors.mixed)
        return lambda shape: (
            prefill + shape.num_prefill + shape.num_mixed >= floors[0]
            and decode + num - shape.num_prefill >= floors[1]
            and shape.num_mixed >= mixed
        )

    def _ability(self, node: PlanNode) -> NodeAbility:
        return self._kinds[self._kind_of[node.node]]

    def _suits_prefill(self, node: PlanNode) -> tuple[float, NodeId]:
        ability = self._ability(node)
        ratio = self.forecaster.prefill_rate(ability) / max(self.forecaster.decode_rate(ability), 1e-12)
        stays = {"prefill": STAYS, "decode": -STAYS}.get(node.mix.role, 0.0)
        return -round(math.log(max(ratio, 1e-12)) + stays, 6), node.node

    # ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _mixes(self, shape: Shape) -> tuple[Mix, ...]:
        roles: dict[NodeId, Mix] = {}
        for index, node in enumerate(self._order):
            ability, epoch = node.ability, node.mix.epoch
            if index < shape.num_prefill:
                mix = Mix(True, False, ability.max_prefill_tokens, ability.max_rows, epoch)
            elif index < shape.num_prefill + shape.num_mixed:
                mix = Mix(True, True, min(shape.chunk, ability.max_prefill_tokens), ability.max_rows, epoch)
            else:
                mix = Mix(False, True, ability.max_prefill_tokens, ability.max_rows, epoch)
            roles[node.node] = mix
        return tuple(roles.get(node.node, node.mix) for node in self.nodes)

    def _option(self, mixes: tuple[Mix, ...]) -> Option:
        key = tuple(accepted(mix) for mix in mixes)
        if key not in self._found:
            parts = self._parts(zip(self.nodes, mixes, strict=True))
            self._found[key] = Option(mixes, kind_of(mixes), self.forecaster.forecast(parts), trust_of(mixes))
        return self._found[key]

    def _parts(self, nodes: Iterable[tuple[PlanNode, Mix]]) -> list[Part]:
        """Nodes that are equal and do the same, counted."""
        kinds = self._kind_of
        found = Counter((*accepted(mix), kinds[node.node]) for node, mix in nodes if mix.role != "closed")
        return [
            Part(role, self._kinds[i], chunk or self._kinds[i].max_prefill_tokens, num)
            for (role, chunk, i), num in found.items()
        ]


@dataclass(frozen=True, slots=True)
class _Rates:
    """Rates of the nodes in order, added up from the first one on."""

    pinned: Sums
    prefill: list[float]
    decode: list[float]
    mixed_prefill: list[float]
    mixed_decode: list[float]

    def __call__(self, shape: Shape) -> float:
        first, last = shape.num_prefill, shape.num_prefill + shape.num_mixed
        pinned = self.pinned
        return Sums(
            pinned.prefill + self.prefill[first],
            pinned.decode + self.decode[-1] - self.decode[last],
            pinned.mixed_prefill + self.mixed_prefill[last] - self.mixed_prefill[first],
            pinned.mixed_decode + self.mixed_decode[last] - self.mixed_decode[first],
        ).rate()


def _divisions(num: int, num_free: int, share: float) -> range:
    """How many of `num` nodes could prefill: all numbers, or those near the balance of both phases."""
    if num_free <= ENUMERATED:
        return range(num + 1)
    middle = round(num * share)
    return range(max(0, middle - 2), min(num, middle + 2) + 1)


def _rounded(tokens: float) -> int:
    return max(MIN_CHUNK, 16 * round(tokens / 16))
