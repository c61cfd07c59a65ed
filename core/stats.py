"""What is measured: a node's own report, and the ledger of one request."""

from dataclasses import dataclass, field

from core.costs import StepWork


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Every block of a pool by state; the fields add up to `capacity`."""

    capacity: int
    free: int
    cached: int
    filling: int
    sealed: int
    reserved: int
    receiving: int
    in_use: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class NodeStats:
    """What a node says of itself. `step_s` is the duration of its last step; counters only rise.

    `num_prompt_tokens` are those of all attempts whose prefill began here, with what earlier attempts had answered;
    `num_cached_tokens` of them were found instead of computed. Rows gave way by being computed again later
    (`num_preempted`) or through host memory (`num_saved`; so far `num_restored` are back). Of `num_drafted` guessed
    tokens the model confirmed `num_accepted`. `num_migrated` rows run on elsewhere. `work` is all that steps consisted
    of so far, `busy_s` how long they took together. Of the queued tokens `queued_offline_tokens` are of the offline
    class.
    """

    queued_tokens: int
    prefilling: int
    leases: int
    incoming: int
    running_rows: int
    blocks: BlockCounts
    mix_epoch: int
    num_steps: int
    step_s: float
    num_dropped_events: int
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preempted: int = 0
    num_saved: int = 0
    num_restored: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_migrated: int = 0
    work: StepWork = field(default_factory=StepWork)
    busy_s: float = 0.0
    queued_offline_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """The ledger of one attempt, in seconds; each part is measured by its one owner as a duration.

    admit: received to routed (gateway and scheduler). queue_prefill: at the prefill node to its first step. prefill:
    first
    step to the end of the last chunk. reserve: prompt done, still waiting for decode blocks or the claim. handoff:
    the tail
    of the transfer after the prefill's end. queue_decode: all KV there to the first decode step. decode: from there to
    the last token. Beside them `num_cached_tokens`: prompt tokens whose KV was found instead of computed.
    """

    admit_s: float = 0.0
    queue_prefill_s: float = 0.0
    prefill_s: float = 0.0
    reserve_s: float = 0.0
    handoff_s: float = 0.0
    queue_decode_s: float = 0.0
    decode_s: float = 0.0
    num_cached_tokens: int = 0

    @property
    def total_s(self) -> float:
        """The sum of the parts; the wall time minus this is `unaccounted`."""
        return (
            self.admit_s
            + self.queue_prefill_s
            + self.prefill_s
            + self.reserve_s
            + self.handoff_s
            + self.queue_decode_s
            + self.decode_s
        )
