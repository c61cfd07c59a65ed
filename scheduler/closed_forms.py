"""What one node can do, by formula: the time of a step, and how many requests per second that allows.

A decode step of B rows takes t(B) = a + k·B/m seconds: a the node's fixed price, k = per row + per context token · mean
context, m the stages of a pipeline, through which the rows go in turns. Each request decodes L tokens, so at λ requests
per second B = λ·L·t. A prompt takes T_p alone. All rates are requests per second of the whole node.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from core.costs import NodeCosts


@dataclass(frozen=True)
class Load:
    """What comes in: requests per second, and their lengths as equally likely values, ascending.

    `hit_share` of the prompt tokens is found in caches instead of computed. Not slotted: its sums are kept.
    """

    rate_rps: float
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    hit_share: float = 0.0

    @cached_property
    def mean_prompt(self) -> float:
        """Tokens of a prompt."""
        return sum(self.prompt_tokens) / len(self.prompt_tokens)

    @cached_property
    def mean_output(self) -> float:
        """Tokens of an answer."""
        return sum(self.output_tokens) / len(self.output_tokens)

    @cached_property
    def mean_context(self) -> float:
        """Tokens that a row attends to, over its life: long answers are seen more often."""
        return self.mean_prompt + sum(n * n for n in self.output_tokens) / (2 * sum(self.output_tokens))

    @cached_property
    def context_spread(self) -> float:
        """How much more the sum of many rows' contexts varies than if all were equal: 1 + cv² of the prompts."""
        return sum(n * n for n in self.prompt_tokens) / len(self.prompt_tokens) / self.mean_prompt**2

    @cached_property
    def computed(self) -> tuple[tuple[float, float], ...]:
        """Of each prompt length: tokens that are computed, and pairs with what they attend to."""
        miss = 1.0 - self.hit_share
        return tuple((n * miss, n * miss * n * self.hit_share + (n * miss) ** 2 / 2) for n in self.prompt_tokens)

    @cached_property
    def mean_pairs(self) -> float:
        """Pairs of a prompt."""
        return sum(pairs for _, pairs in self.computed) / len(self.computed)

    def at(self, rate_rps: float) -> "Load":
        """The same lengths at another rate."""
        return Load(rate_rps, self.prompt_tokens, self.output_tokens, self.hit_share)

    def leaning(self, logarithm: float) -> "Load":
        """Longer prompts and shorter answers: the ratio of their tokens is multiplied by e to that power."""
        factor = math.exp(logarithm / 2)
        prompts = tuple(max(1, round(n * factor)) for n in self.prompt_tokens)
        return replace(
            self, prompt_tokens=prompts, output_tokens=tuple(max(1, round(n / factor)) for n in self.output_tokens)
        )


ROWS_BESIDE = 0.25
"""Rows in a mixed step for each of its prompt tokens, where they are not known: what matters is that a chunk which just
fits what an engine does cheaply does not fit with them."""


@dataclass(frozen=True, slots=True)
class NodeAbility:
    """What a node has: prices, tokens that its pool holds, rows at a time, prompt tokens in one step at most.

    A token's KV takes its link `link_s` between nodes; 0 where the link is no limit.
    """

    costs: NodeCosts
    pool_tokens: int
    max_rows: int
    max_prefill_tokens: int
    num_stages: int = 1
    link_s: float = 0.0

    def row_s(self, context: float) -> float:
        """What one more row adds to a step."""
        return self.costs.per_row_s + self.costs.per_row_context_s * context


def decode_step_s(node: NodeAbility, load: Load, rows: float) -> float:
    """A step of so many rows and nothing else."""
    return node.costs.decode_fixed_s + node.row_s(load.mean_context) * rows / node.num_stages


def decode_rate_by_tpot(node: NodeAbility, load: Load, tpot_s: float) -> float:
    """The rate at which the mean step takes as long as the target."""
    spare = 1.0 - node.costs.decode_fixed_s / tpot_s
    return max(0.0, node.num_stages * spare / (load.mean_output * node.row_s(load.mean_context)))


def max_rows_of(node: NodeAbility, load: Load) -> float:
    """Rows that the pool, or the node's own limit, allows."""
    return min(float(node.max_rows), node.pool_tokens / load.mean_context)


def decode_rate_by_pool(node: NodeAbility, load: Load) -> float:
    """The rate at which the rows fill the pool."""
    rows = max_rows_of(node, load)
    return rows / (load.mean_output * decode_step_s(node, load, rows))


def prefill_s(node: NodeAbility, tokens: float, pairs: float, chunk: int) -> float:
    """A prompt alone, in chunks of at most `chunk` tokens, with nothing else on the node."""
    num_steps, grown_s = _steps(node, tokens, pairs, chunk)
    return num_steps * node.costs.prefill_s(grown_s)


def prefill_beside_s(node: NodeAbility, tokens: float, pairs: float, chunk: int, rows_s: float) -> float:
    """The same in steps with rows, which take `rows_s` of each."""
    num_steps, grown_s = _steps(node, tokens, pairs, chunk, ROWS_BESIDE if rows_s else 0.0)
    return num_steps * (node.costs.mixed_s(grown_s, rows_s) if rows_s else node.costs.prefill_s(grown_s))


def _steps(node: NodeAbility, tokens: float, pairs: float, chunk: int, beside: float = 0.0) -> tuple[int, float]:
    """How many steps a prompt takes, and what grows of each with it; `beside`: rows in them, for each of its tokens."""
    num_steps = math.ceil(max(tokens, 1.0) / chunk)
    grown_s = tokens * node.costs.token_s((1.0 + beside) * min(tokens, chunk)) + pairs * node.costs.per_prefill_pair_s
    return num_steps, grown_s / num_steps


def prefill_times(node: NodeAbility, load: Load, chunk: int) -> tuple[float, ...]:
    """The time alone of each of the load's prompts."""
    return tuple(prefill_s(node, tokens, pairs, chunk) for tokens, pairs in load.computed)


def prefill_rate_alone(node: NodeAbility, load: Load) -> float:
    """One prompt after the other."""
    times = prefill_times(node, load, node.max_prefill_tokens)
    return len(times) / sum(times)


def prefill_rate_batched(node: NodeAbility, load: Load) -> float:
    """Full steps of many prompts: what is fixed is shared by all."""
    tokens = sum(tokens for tokens, _ in load.computed) / len(load.computed)
    costs = node.costs
    return 1.0 / (tokens * costs.token_s(node.max_prefill_tokens) + load.mean_pairs * costs.per_prefill_pair_s)


def share_in_time(times: tuple[float, ...], rate_rps: float, num_servers: float, limit_s: float) -> float:
    """The share of prompts that are done `limit_s` after they came, at `num_servers` equal nodes with one queue.

    An M/G/n queue: P(wait > w) ≈ C·exp(-w·2n(1-ρ)/(T(1+cv²))); C, the chance of any wait, is ρ for one server and
    ρ^(√(2(n+1))-1) for n (Sakasegawa's approximation). 0 where the queue only grows.
    """
    mean_s = sum(times) / len(times)
    load = rate_rps * mean_s / num_servers
    if load >= 1.0:
        return 0.0
    waits = load ** (math.sqrt(2.0 * (num_servers + 1.0)) - 1.0)
    second = sum(t * t for t in times) / len(times)
    decay = 2.0 * num_servers * (1.0 - load) * mean_s / second
    late = sum(waits * math.exp(-(limit_s - t) * decay) if t <= limit_s else 1.0 for t in times)
    return 1.0 - late / len(times)


def share_taken(times: tuple[float, ...], rate_rps: float, num_servers: float, limit_s: float) -> float:
    """The share that is done in time where those that would be late are turned away at once, and hold nobody up.

    With Π = P(wait > w) as if all were taken, a share (1-ρ)Π/(1-ρΠ) is turned away (Boots and Tijms, 1999, for servers
    whose customers do not wait longer than w); that holds for ρ above 1 as well. Prompts that take too long even alone
    are turned away by themselves.
    """
    taken = tuple(t for t in times if t <= limit_s)
    if not taken:
        return 0.0
    rate = rate_rps * len(taken) / len(times)
    mean_s = sum(taken) / len(taken)
    load = rate * mean_s / num_servers
    load += 1e-6 if abs(load - 1.0) < 1e-6 else 0.0
    waits = min(1.0, load) ** (math.sqrt(2.0 * (num_servers + 1.0)) - 1.0)
    decay = 2.0 * num_servers * (1.0 - load) * mean_s / (sum(t * t for t in taken) / len(taken))
    late = 0.0
    for t in taken:
        beyond = waits * math.exp(min(60.0, -(limit_s - t) * decay))
        late += min(1.0, max(0.0, (1.0 - load) * beyond / (1.0 - load * beyond)))
    return (len(taken) - late) / len(times)


def prefill_rate_by_ttft(node: NodeAbility, load: Load, limit_s: float, target: float) -> float:
    """The rate at which a share of `target` is prefilled in time by one node; 0 where no rate is low enough.

    `limit_s` is the target for the first token less what comes after the prefill.
    """
    times = prefill_times(node, load, node.max_prefill_tokens)
    low, high = 0.0, len(times) / sum(times)
    for _ in range(24):
        rate = (low + high) / 2
        low, high = (rate, high) if share_in_time(times, rate, 1, limit_s) >= target else (low, rate)
    return low


def rate_by_link(node: NodeAbility, load: Load) -> float:
    """The rate at which the KV of whole prompts fills the node's link."""
    return 1.0 / (load.mean_prompt * node.link_s) if node.link_s else math.inf
