"""A process that lends KV by shared memory, and does as it is told on its standard input, line by line."""

import json
import sys

from kv_transfer.transport import Binding
from tests.transports.lenders import LocalLender, shm_lender


def do(lenders: dict[str, LocalLender], deed: str, order: dict[str, object]) -> str:
    """One deed; returns the answer's line."""
    if deed == "open":
        wanted = Binding.unpack(bytes.fromhex(str(order["wanted"])))
        lenders[wanted.node] = shm_lender(wanted.node, wanted.layout, wanted.shape, bytes.fromhex(str(order["token"])))
        return lenders[wanted.node].binding().pack().hex()
    lender = lenders[str(order.pop("node"))]
    if deed == "write":
        return lender.write(**order).hex()  # type: ignore[arg-type]
    getattr(lender, {"set_generation": "set_generation", "close": "close"}[deed])(**order)
    return "done"


def main() -> None:
    """Serve until the input ends."""
    lenders: dict[str, LocalLender] = {}
    for line in sys.stdin:
        order = json.loads(line)
        print(do(lenders, order.pop("deed"), order), flush=True)


if __name__ == "__main__":
    main()
