"""What a node accepts now. The classical layouts are points in this space."""

from dataclasses import dataclass

from core.costs import NodeCosts
from core.ids import LayoutId
from core.kv import KVLayout


@dataclass(frozen=True, slots=True)
class Mix:
    """What a node accepts. `prefill_tokens_per_step` does not count decode rows; `epoch` orders the mixes of one
    node."""

    accepts_prefill: bool
    accepts_decode: bool
    prefill_tokens_per_step: int
    max_decode_rows: int
    epoch: int = 0

    @property
    def role(self) -> str:
        """`prefill`, `decode`, `mixed` or `closed`: the word for people."""
        match self.accepts_prefill, self.accepts_decode:
            case True, True:
                return "mixed"
            case True, False:
                return "prefill"
            case False, True:
                return "decode"
        return "closed"


def mix_of(role: str, prefill_tokens_per_step: int, max_decode_rows: int, epoch: int = 0) -> Mix:
    """The mix of a role's name (`prefill`, `decode`, `mixed`, `closed`). Raises KeyError for another word."""
    prefill, decode = {
        "prefill": (True, False),
        "decode": (False, True),
        "mixed": (True, True),
        "closed": (False, False),
    }[role]
    return Mix(prefill, decode, prefill_tokens_per_step, max_decode_rows, epoch)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node is, told once when it joins: its geometry, its limits, and the mix it was started with.

    `costs` are what it was told or measured of its own steps, None where nothing is known.
    """

    layout: LayoutId
    kv: KVLayout
    num_blocks: int
    max_model_len: int
    mix: Mix
    costs: NodeCosts | None = None
