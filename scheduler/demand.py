"""What is asked of those who route, and what they may answer."""

from dataclasses import dataclass, field

from core.ids import NodeId
from core.request import Request
from scheduler.pair import Pair


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs now. Blocks are credits: of the prompt (with its log), and of prompt and expected growth.

    `prefill_tokens` are to be computed, but where the whole prompt, which `prompt` names, is booked already: see
    `scheduler.view.NodeView`. `avoid` are nodes on which an earlier try failed: taken only where no other can.
    `prefixes` name what of it may be found (see `scheduler.prefix_index`), `stride_tokens` tokens each. It has waited
    for `waited_s`, and should answer with `output_tokens`.
    """

    request: Request
    prefill_tokens: int
    prefill_blocks: int
    decode_blocks: int
    decodes: bool = True
    avoid: frozenset[NodeId] = frozenset()
    prompt: bytes = b""
    prefixes: tuple[bytes, ...] = ()
    stride_tokens: int = 0
    waited_s: float = 0.0
    output_tokens: float = 256.0


@dataclass(frozen=True, slots=True)
class Route:
    """Prefill node and decode node; the same means that nothing moves. `pair` is what was predicted, where it was."""

    prefill: NodeId
    decode: NodeId
    pair: Pair | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no route: `busy` (blocks are booked now; a smaller request may have more luck), `in_line` (it waits
    for what those behind it would need as well) or `unavailable` (no node accepts a phase)."""

    code: str
    message: str
