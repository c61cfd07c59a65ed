"""Rows of this node's decode machine that go on elsewhere: what the lender must know of them to lend their blocks."""

from dataclasses import dataclass

from core.events import PrefillDone, Submitted
from core.ids import AttemptId, GatewayId, NodeId
from core.kv import num_blocks
from core.lifecycle import PrefillState
from core.request import Request
from core.stats import Timing
from prefill_worker.attempt import Findable, Prefill


@dataclass(frozen=True, slots=True)
class Migrant:
    """A row that is in no step. `num_tokens` tokens (prompt and `log`) have KV in the first blocks of `table`, which
    are sealed; `token_id` was sampled after them. Blocks behind them are the row's, and are not lent.
    """

    id: AttemptId
    request: Request
    log: bytes
    gateway: GatewayId
    to: NodeId
    table: tuple[int, ...]
    num_tokens: int
    token_id: int
    timing: Timing
    num_preemptions: int

    @property
    def done(self) -> PrefillDone:
        """The end of a prefill that computed all these tokens: that is how the reader takes it."""
        return PrefillDone(self.num_tokens, self.token_id, self.timing)


def prefill_of_migrant(migrant: Migrant, block_size: int, now: float) -> Prefill:
    """The row as the lender keeps it: all computed, all sealed, nothing offered yet."""
    asked = Submitted(
        migrant.id, migrant.request, migrant.log, migrant.gateway, migrant.to, 0.0, migrant.num_preemptions
    )
    number = num_blocks(migrant.num_tokens, block_size)
    return Prefill(
        asked,
        now,
        migrant.num_tokens,
        Findable(),
        PrefillState.OFFERED,
        migrant.table,
        num_computed=migrant.num_tokens,
        num_planned=migrant.num_tokens,
        num_to_seal=number,
        num_sealed=number,
        is_migrant=True,
    )
