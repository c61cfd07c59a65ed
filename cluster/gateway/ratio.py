"""A ratio of prefill to decode nodes as roles for the nodes that there are."""

import re
from collections.abc import Mapping

from cluster.api.v1 import admin_pb2 as pb
from core.errors import ConfigError

_RATIO = re.compile(r"(\d{1,4}):(\d{1,4})")


def roles_now(shown: pb.AdminServiceGetClusterResponse) -> dict[str, str]:
    """The role of every slot that is not drained; empty while no node is in it."""
    roles = {node.id: node.role for node in shown.cluster.nodes}
    return {slot.name: roles.get(slot.node, "") for slot in shown.slots if not slot.drained}


def roles_for(ratio: str, slots: Mapping[str, str]) -> dict[str, str]:
    """Which slot gets which role, given what each has; as few as can be change. Raises ConfigError.

    A ratio of fewer nodes than there are is scaled up where it goes into them: 1:1 of four nodes is 2:2.
    """
    found = _RATIO.fullmatch(ratio)
    parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if 0 in parts:
        raise ConfigError([f"the ratio must be P:D with both at least 1, or auto; not {ratio!r}"])
    if len(slots) % sum(parts):
        problem = f"{ratio} does not go into the {len(slots)} nodes that are not drained"
        raise ConfigError([f"{problem}; P + D must be {len(slots)} or divide it"])
    num_prefill = parts[0] * (len(slots) // sum(parts))
    preference = {"prefill": 0, "mixed": 1, "": 1, "closed": 1, "decode": 2}
    names = sorted(slots, key=lambda name: preference.get(slots[name], 1))  # stable: equal ones keep their order
    return {name: "prefill" if place < num_prefill else "decode" for place, name in enumerate(names)}


def slot_of(node: str) -> str:
    """A slot may be named by the whole id of the node in it."""
    return node.partition("@")[0]
