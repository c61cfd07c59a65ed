"""What the decode machine must know of its node and model."""

from dataclasses import dataclass, field

from core.ids import NodeId
from core.timers import Timers


@dataclass(frozen=True, slots=True)
class PreemptionCosts:
    """What steps and copies take on this node.

    A step that computes n tokens of one row takes `fixed_s + n · prefill_s_per_token`, and for each of these tokens
    `prefill_s_per_token_context` times the tokens before it. `copy_s_per_block`: one block to host memory, or back.
    """

    fixed_s: float
    prefill_s_per_token: float
    prefill_s_per_token_context: float
    copy_s_per_block: float

    def recompute_s(self, num_tokens: int) -> float:
        """A context of this length, computed from nothing."""
        attended = num_tokens * (num_tokens - 1) / 2
        return self.fixed_s + num_tokens * self.prefill_s_per_token + attended * self.prefill_s_per_token_context

    def save_s(self, num_blocks: int) -> float:
        """So many blocks out to host memory, and back."""
        return 2 * num_blocks * self.copy_s_per_block


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """`max_early` bounds the attempts whose `Sealed` came before their `Offered`.

    `max_draft_tokens`: how many tokens a row may guess in one step; 0: none. `overlaps`: the next step is planned while
    one runs. `max_saved_blocks` bounds the blocks kept in host memory; without `costs` nothing is saved. `max_runs`:
    how often one plan may be run before its result is told.
    """

    node: NodeId
    block_size: int
    eos_token_ids: frozenset[int]
    timers: Timers = field(default_factory=Timers)
    max_early: int = 1024
    max_model_len: int = 1 << 30
    max_draft_tokens: int = 0
    overlaps: bool = False
    max_saved_blocks: int = 0
    max_runs: int = 1
    costs: PreemptionCosts | None = None
