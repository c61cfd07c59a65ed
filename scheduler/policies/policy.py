"""The seam of routing: what is asked, and what may be answered."""

from dataclasses import dataclass
from typing import Protocol

from core.ids import NodeId
from core.request import Request
from scheduler.view import ClusterView


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs now. Blocks are credits: of the prompt (with its log), and of prompt and expected growth.

    `prefill_tokens` are to be computed, but where the whole prompt, which `prompt` names, is booked already: see
    `scheduler.view.NodeView`. `avoid` are nodes on which an earlier try failed: taken only where no other can.
    """

    request: Request
    prefill_tokens: int
    prefill_blocks: int
    decode_blocks: int
    decodes: bool = True
    avoid: frozenset[NodeId] = frozenset()
    prompt: bytes = b""


@dataclass(frozen=True, slots=True)
class Route:
    """Prefill node and decode node; the same means that nothing moves."""

    prefill: NodeId
    decode: NodeId


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no route: `busy` (blocks are booked now, wait) or `unavailable` (no node accepts a phase)."""

    code: str
    message: str


class Policy(Protocol):
    """Chooses; changes nothing."""

    def route(self, demand: Demand, view: ClusterView, now: float) -> Route | Refusal:
        """The nodes for this demand, or why there are none."""
        ...
