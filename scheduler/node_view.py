"""One node as the scheduler sees it: what is booked there (truth), what it last said, what its steps should cost."""

from collections import Counter
from dataclasses import dataclass
from math import exp, inf
from typing import TypeVar

from core.costs import curve_price
from core.ids import AttemptId, NodeId
from core.mix import Mix, NodeSpec
from core.stats import NodeStats
from scheduler.belief import Belief

LOAD_WINDOW_S = (0.5, 30.0)
"""Over how long prompts computed beside rows are held against these: an answer's time, within these bounds."""

MOST_LOAD = 0.95

_Key = TypeVar("_Key", bytes, float)


@dataclass(frozen=True, slots=True)
class Booking:
    """What one attempt has booked at one node: blocks (credits), prompt tokens to be computed there, a decode row.

    `prompt` names the whole prompt that is computed there, or was and is still held; empty where that helps nobody. An
    attempt that finds its prompt booked there adds no tokens to be computed. `pairs`: of these tokens, as
    `core.costs.StepWork` counts them. A row attends to `context` tokens, on average over its life, and should take at
    most `tpot_s` for each of its own. Rows of the offline class may be asked back.
    """

    blocks: int
    prefill_tokens: int
    num_rows: int
    prompt: bytes = b""
    pairs: float = 0.0
    context: int = 0
    tpot_s: float = inf
    is_offline: bool = False


class NodeView:
    """One node. `mix` is what it was last told; `base_mix` what it should do when every phase is covered.

    Owns: its bookings and their sums. `prompts` counts those of its bookings: another attempt with an equal one
    computes only its last token there. `free_at`: when what waits there to be prefilled will be done. What prompts
    added to steps lately is `recent_s` seconds, as of `recent_at`, fading over `window_s`. `handoff_factor` corrects
    what it should take to bring KV here, by `num_handoffs` that were seen; when its card will have sent and brought
    what is under way: `sends_at`, `brings_at`. The offline class yields, so others are predicted without it: what it
    does is summed up beside.
    What `settle` derives stands here ready for the many who ask: whether it has any room to prefill or decode, prices
    in seconds, rates, the strictest TPOT of its rows. Invariant: after any change that they depend on, the node is in
    `changed`, until it is settled.
    """

    __slots__ = (
        "_mix",
        "answer_s",
        "base_mix",
        "belief",
        "bit",
        "booked_blocks",
        "booked_context",
        "booked_offline",
        "booked_pairs",
        "booked_rows",
        "booked_tokens",
        "bookings",
        "brings_at",
        "budget_tokens",
        "changed",
        "context_s",
        "curve",
        "decode_fixed_s",
        "decode_s",
        "decodes",
        "free_at",
        "handoff_factor",
        "kv_bytes",
        "mixed_fixed_s",
        "node",
        "num_handoffs",
        "offline_context",
        "offline_free_at",
        "offline_recent_s",
        "offline_rows",
        "offline_s",
        "overlap",
        "pair_s",
        "prefill_fixed_s",
        "prefills",
        "promised_rows",
        "prompts",
        "recent_at",
        "recent_s",
        "row_s",
        "rows_s",
        "sends_at",
        "slos",
        "spec",
        "stats",
        "strictest_s",
        "token_s",
        "tokens_since_stats",
        "unbooked",
        "window_s",
    )

    def __init__(self, node: NodeId, spec: NodeSpec, bit: int, changed: "dict[NodeId, NodeView]") -> None:
        self.node = node
        self.spec = spec
        self.bit = bit
        self.changed = changed
        self.base_mix = spec.mix
        self.mix = spec.mix
        self.bookings: dict[AttemptId, Booking] = {}
        self.prompts: Counter[bytes] = Counter()
        self.slos: Counter[float] = Counter()
        self.booked_blocks = 0
        self.booked_tokens = 0
        self.booked_pairs = 0.0
        self.booked_rows = 0
        self.booked_context = 0
        self.booked_offline = 0
        self.offline_rows = 0
        self.offline_context = 0
        self.offline_free_at = -inf
        self.offline_recent_s = 0.0
        self.stats: NodeStats | None = None
        self.tokens_since_stats = 0
        self.belief = Belief(spec.costs)
        self.free_at = -inf
        self.recent_s = 0.0
        self.recent_at = 0.0
        self.handoff_factor = 1.0
        self.num_handoffs = 0
        self.sends_at = self.brings_at = -inf
        self.kv_bytes = spec.kv.bytes_per_token
        self.settle(1.0)

    @property
    def mix(self) -> Mix:
        """What it was last told to accept."""
        return self._mix

    @mix.setter
    def mix(self, mix: Mix) -> None:
        self._mix = mix
        self.changed[self.node] = self

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait there: what the node said last and what was sent since; at most what is booked.

        A booking lasts until the attempt is gone, long after its prompt was computed.
        """
        if self.stats is None:
            return self.booked_tokens
        return min(self.booked_tokens, self.stats.queued_tokens + self.tokens_since_stats)

    @property
    def num_rows_left(self) -> int:
        """Rows that may still be promised; more would only take turns."""
        return self._mix.max_decode_rows - self.booked_rows

    @property
    def num_unbooked(self) -> int:
        """Blocks that may still be promised."""
        return self.spec.num_blocks - self.booked_blocks

    @property
    def share_booked(self) -> float:
        """Share of the pool that is promised, 0 to 1."""
        return self.booked_blocks / self.spec.num_blocks

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def book(self, attempt: AttemptId, booking: Booking, now: float) -> None:
        """Promise blocks, a row and prefill work."""
        self.bookings[attempt] = booking
        self.tokens_since_stats += booking.prefill_tokens
        if booking.prefill_tokens:
            tokens, pairs, faded = booking.prefill_tokens, booking.pairs, self._faded(now)
            own_s, delay_s = self.prefill_s(tokens, pairs), self.delay_s(tokens, pairs)
            self.recent_s *= faded
            self.offline_recent_s *= faded
            self.recent_at = now
            if booking.is_offline:
                self.offline_free_at = max(self.offline_free_at, self.free_at, now) + own_s
                self.offline_recent_s += delay_s
            else:
                self.free_at = max(self.free_at, now) + own_s
                self.recent_s += delay_s
        self._add(booking, 1)

    def note_handoff(self, source: "NodeView", moved_s: float, now: float) -> None:
        """KV will come from there that takes its link so long."""
        source.sends_at = max(source.sends_at, now) + moved_s
        self.brings_at = max(self.brings_at, now) + moved_s

    def release(self, attempt: AttemptId) -> bool:
        """Give back what the attempt had booked; False where it had nothing."""
        booking = self.bookings.pop(attempt, None)
        if booking is None:
            return False
        self._add(booking, -1)
        return True

    def believe(self, stats: NodeStats, now: float) -> None:
        """What the node says of itself: what its steps took, and how much still waits."""
        self.stats, self.tokens_since_stats = stats, 0
        self.belief.observe(stats)
        offline_tokens = min(self.queued_tokens, stats.queued_offline_tokens)
        waits_s, offline_s = self.queue_s(self.queued_tokens - offline_tokens), self.queue_s(offline_tokens)
        self.free_at = now + waits_s if waits_s else min(self.free_at, now)
        self.offline_free_at = max(self.free_at, now) + offline_s if offline_s else min(self.offline_free_at, now)
        self.changed[self.node] = self

    def settle(self, mean_output: float) -> None:
        """Derive prices and rates from what is booked and believed. `mean_output`: tokens of an answer."""
        costs, mix = self.belief.costs, self._mix
        self.unbooked = self.spec.num_blocks - self.booked_blocks
        self.prefills = mix.accepts_prefill and self.unbooked > 0
        self.decodes = mix.accepts_decode and self.unbooked > 0 and mix.max_decode_rows > self.booked_rows
        self.offline_s = self.offline_rows * costs.per_row_s + self.offline_context * costs.per_row_context_s
        rows, context = self.booked_rows - self.offline_rows, self.booked_context - self.offline_context
        self.rows_s = rows * costs.per_row_s + context * costs.per_row_context_s
        self.row_s, self.context_s, self.pair_s = costs.per_row_s, costs.per_row_context_s, costs.per_prefill_pair_s
        self.decode_fixed_s = costs.decode_fixed_s
        self.decode_s = costs.decode_fixed_s + self.rows_s
        self.budget_tokens = max(1, mix.prefill_tokens_per_step)
        self.prefill_fixed_s, self.mixed_fixed_s = costs.prefill_fixed_s, costs.mixed_fixed_s
        self.token_s, self.overlap = costs.token_s(self.budget_tokens + self.booked_rows), costs.overlap
        self.curve = costs.prefill_curve
        self.answer_s = max(1e-9, mean_output * (self.decode_s + costs.per_row_s))
        self.window_s = min(LOAD_WINDOW_S[1], max(LOAD_WINDOW_S[0], self.answer_s))
        self.strictest_s = min(self.slos, default=inf)
        self.promised_rows = sum(self.slos.values())

    # ── predictions, from what `settle` derived ──────────────────────────────────────────────────────────────────────

    def wait_s(self, now: float) -> float:
        """Until a prompt that comes now is begun: what waits before it, or on average half a step of rows."""
        waits_s = self.free_at - now
        least_s = self.decode_s / 2 if self.booked_rows else 0.0
        return waits_s if waits_s > least_s else least_s

    def queue_s(self, num_tokens: int) -> float:
        """To compute so many tokens of prompts that are as long as those booked here, in full steps."""
        per_token = self.booked_pairs / self.booked_tokens if self.booked_tokens else 0.0
        return self._steps_s(num_tokens / self.budget_tokens, num_tokens * (self.token_s + per_token * self.pair_s))

    def prefill_s(self, num_tokens: int, pairs: float) -> float:
        """From the first step of a prompt to the end of its last: in chunks, with the rows that decode here beside."""
        num_steps = num_tokens / self.budget_tokens
        return self._steps_s(num_steps if num_steps > 1.0 else 1.0, self._prompt_s(num_tokens, pairs))

    def _prompt_s(self, num_tokens: int, pairs: float) -> float:
        """What grows with a prompt, of the steps that it takes by itself."""
        token_s = self.token_s
        if self.curve and num_tokens < self.budget_tokens:
            token_s = curve_price(self.curve, num_tokens + self.booked_rows)
        return num_tokens * token_s + pairs * self.pair_s

    def _steps_s(self, num_steps: float, prompts_s: float) -> float:
        """So many steps, which take this for the prompts in them."""
        if not self.rows_s:
            alone_s, least_s = (
                num_steps * self.prefill_fixed_s + prompts_s,
                num_steps * self.overlap * self.decode_fixed_s,
            )
            return alone_s if alone_s > least_s else least_s
        return num_steps * (self.decode_fixed_s + self.rows_s) + self._longer_s(num_steps, prompts_s)

    def delay_s(self, num_tokens: int, pairs: float) -> float:
        """What a prompt adds to the steps of the rows here: what its chunks take beyond what hides behind the rows."""
        num_steps = -(-num_tokens // self.budget_tokens)
        return self._longer_s(num_steps, self._prompt_s(num_tokens, pairs))

    def _longer_s(self, num_steps: float, prompts_s: float) -> float:
        """How much longer so many steps of rows become by prompts (`NodeCosts.mixed_s`)."""
        prompts_s += num_steps * (self.mixed_fixed_s - self.decode_fixed_s)
        rows_s = num_steps * (self.rows_s + self.mixed_fixed_s - self.prefill_fixed_s)
        return prompts_s - self.overlap * (prompts_s if prompts_s < rows_s else rows_s)

    def step_s(self, context: float, after_s: float) -> float:
        """A step of rows in `after_s` seconds, one more among them: of those here now, some will have ended."""
        stay = self.answer_s / (self.answer_s + after_s)
        return self.decode_fixed_s + self.rows_s * stay + self.row_s + context * self.context_s

    def slowed(self, step_s: float, now: float, more_s: float = 0.0) -> float:
        """Time for a row's token: such a step, and the row's part of what prompts add, if they go on as lately.

        `more_s`: what one more prompt would add.
        """
        added_s = self.recent_s * self._faded(now) + more_s if self.recent_s else more_s
        return step_s / (1.0 - min(MOST_LOAD, added_s / self.window_s))

    def with_offline_s(self, step_s: float, more_s: float, now: float) -> float:
        """The same with all that the offline class does there: with its rows and prompts, and `more_s` for another."""
        added_s = (self.recent_s + self.offline_recent_s) * self._faded(now) + more_s
        return (step_s + self.offline_s) / (1.0 - min(MOST_LOAD, added_s / self.window_s))

    def _faded(self, now: float) -> float:
        return exp((self.recent_at - now) / self.window_s) if self.recent_s or self.offline_recent_s else 0.0

    def _add(self, booking: Booking, sign: int) -> None:
        self.booked_blocks += sign * booking.blocks
        self.booked_tokens += sign * booking.prefill_tokens
        self.booked_pairs = max(0.0, self.booked_pairs + sign * booking.pairs)
        self.booked_rows += sign * booking.num_rows
        self.booked_context += sign * booking.context
        if booking.is_offline:
            self.booked_offline += sign
            self.offline_rows += sign * booking.num_rows
            self.offline_context += sign * booking.context
        _count(self.prompts, booking.prompt, sign)
        if booking.num_rows and booking.tpot_s < inf:
            _count(self.slos, booking.tpot_s, sign)
        self.changed[self.node] = self

    def check(self) -> None:
        """Asserts that the sums are those of the bookings, and that nothing is promised twice."""
        all_here, node = self.bookings.values(), self.node
        assert self.booked_blocks == sum(b.blocks for b in all_here), f"booked at {node}"
        assert self.booked_tokens == sum(b.prefill_tokens for b in all_here), f"tokens at {node}"
        assert abs(self.booked_pairs - sum(b.pairs for b in all_here)) <= 1e-6 * (1 + self.booked_pairs), f"{node}"
        assert self.booked_rows == sum(b.num_rows for b in all_here), f"rows at {node}"
        assert self.booked_context == sum(b.context for b in all_here), f"context at {node}"
        offline = [b for b in all_here if b.is_offline]
        assert self.offline_rows == sum(b.num_rows for b in offline), f"offline rows at {node}"
        assert self.offline_context == sum(b.context for b in offline), f"offline context at {node}"
        assert self.booked_offline == sum(b.is_offline for b in all_here), f"offline at {node}"
        assert self.prompts == Counter(b.prompt for b in all_here if b.prompt), f"prompts at {node}"
        assert self.slos == Counter(b.tpot_s for b in all_here if b.num_rows and b.tpot_s < inf), f"SLOs at {node}"
        assert self.booked_blocks <= self.spec.num_blocks, f"{node} is promised {self.booked_blocks} blocks"


def _count(counter: "Counter[_Key]", key: "_Key", sign: int) -> None:
    """Count a key up or down; one that is falsy is not counted, and one at 0 is not kept."""
    if not key:
        return
    counter[key] += sign
    if not counter[key]:
        del counter[key]
