"""Who belongs to the cluster beside its nodes: gateways, which come and go as processes of their own."""

from dataclasses import dataclass

from core.ids import GatewayId


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """To the scheduler: a gateway is gone for good, and with it the clients of its requests; its id never returns."""

    gateway: GatewayId
    why: str
