"""What the head tells gateways that are processes of their own: what they serve, and now and then how it goes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.operator import Operator, SlotView
from cluster.live.config import NodeSettings
from core.timers import Timers

MAX_DECISIONS = 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model as every gateway must know it.

    `folder` is where the head has it, `tokenizer` the digest of the files there that make tokens of text: equal ones
    give equal prompts. `chat_template` is the one that the head uses, None without one. The rest is what nodes make of
    the weights.
    """

    served: ServedModel
    folder: str
    tokenizer: str
    load_format: str
    dtype: str
    quantization: str
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """All that a gateway needs before its first request. Keys are here as their hashes only."""

    model: ModelFacts
    limits: Limits
    access: AccessSettings
    timers: Timers


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as its head sees it: for readiness, for GetCluster, and for those who look."""

    state: ClusterState = field(default_factory=lambda: ClusterState(()))
    slots: tuple[SlotView, ...] = ()
    controller: str = "off"


def facts_of(gateway: Gateway, node: NodeSettings, timers: Timers) -> Callable[[], GatewayFacts]:
    """What others have to know to be like this gateway; the files are read now, who may call when it is asked."""
    template = gateway.tokenizer.chat_template
    model = ModelFacts(
        served=gateway.model,
        folder=str(node.model),
        tokenizer=tokenizer_digest(node.model),
        load_format=node.load_format,
        dtype=node.dtype,
        quantization=node.quantization,
        chat_template=None if template is None else template.source,
    )
    return lambda: GatewayFacts(model, gateway.limits, gateway.access.settings, timers)


def view_of(operator: Operator) -> ClusterView:
    """The cluster now, with its last decisions only."""
    shown = operator.shown()
    state = replace(shown, decisions=shown.decisions[-MAX_DECISIONS:])
    return ClusterView(state, tuple(operator.slots()), operator.controller())


def tokenizer_digest(folder: Path) -> str:
    """Over the names and bytes of the files that make tokens of text; those that are missing count as missing."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        data = path.read_bytes() if path.is_file() else None
        digest.update(repr((name, None if data is None else hashlib.sha256(data).hexdigest())).encode())
    return digest.hexdigest()
