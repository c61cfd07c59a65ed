"""What things cost in a simulated cluster: its truth, which no scheduler's belief is derived from."""

from dataclasses import dataclass

from decode_worker.config import PreemptionCosts


@dataclass(frozen=True, slots=True)
class StepCosts:
    """A step takes `fixed_s + per_token_s · tokens + per_context_s · tokens attended to before it`."""

    fixed_s: float = 0.004
    per_token_s: float = 0.0005
    per_context_s: float = 0.00001

    def step_s(self, num_tokens: int, context_tokens: int) -> float:
        """Duration of a step."""
        return self.fixed_s + self.per_token_s * num_tokens + self.per_context_s * context_tokens


@dataclass(frozen=True, slots=True)
class LinkCosts:
    """A message takes `message_s`; a fetch `fetch_s`, then `block_s` for each block."""

    message_s: float = 0.0005
    fetch_s: float = 0.001
    block_s: float = 0.0008


@dataclass(frozen=True, slots=True)
class Costs:
    """All costs of a cluster; `jitter` is the largest share by which one duration is longer than the table says."""

    step: StepCosts = StepCosts()
    link: LinkCosts = LinkCosts()
    jitter: float = 0.5

    def preemption(self, copy_s_per_block: float | None) -> PreemptionCosts | None:
        """What a node is told, where it is told how long a copy takes."""
        if copy_s_per_block is None:
            return None
        step = self.step
        return PreemptionCosts(step.fixed_s, step.per_token_s, step.per_context_s, copy_s_per_block)
