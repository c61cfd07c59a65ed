"""Identities. Nodes know attempts only, so a late message can name nothing that is current."""

from typing import NewType

RequestId = NewType("RequestId", str)
"""Minted by a gateway: what sets its own id apart from others', then 96 random bits, 32 hex digits in all. The client's
own id is echoed and never used as a key."""

AttemptId = NewType("AttemptId", str)
"""One try of one request: `<request id>#<number>`; the only name that a node sees."""

NodeId = NewType("NodeId", str)
"""`<name>@<incarnation>`: a process that starts again on the same address is another node."""

GatewayId = NewType("GatewayId", str)
LayoutId = NewType("LayoutId", str)

Address = str
"""Where a `Tell` goes: a node id, a gateway id, `SCHEDULER`, `OPERATOR` or `PLANNER`."""

SCHEDULER: Address = "scheduler"
OPERATOR: Address = "operator"
PLANNER: Address = "planner"


def attempt_id(request: RequestId, number: int) -> AttemptId:
    """The name of try `number` of `request`; later tries have larger numbers."""
    return AttemptId(f"{request}#{number}")


def request_of(attempt: AttemptId) -> RequestId:
    """The request that an attempt belongs to."""
    return RequestId(attempt.rpartition("#")[0])


def number_of(attempt: AttemptId) -> int:
    """The number of the try, as `attempt_id` took it."""
    return int(attempt.rpartition("#")[2])


def node_name(node: NodeId) -> str:
    """The part of a node id that outlives its incarnations."""
    return node.partition("@")[0]
