"""A process that lends KV, and does as it is told on its standard input, line by line."""

import json
import os
import signal
import sys

from kv_transfer.transport import Binding
from tests.transports.device_lenders import ipc_lender
from tests.transports.lenders import LocalLender, gloo_lender, shm_lender
from tests.transports.nixl_lenders import nixl_lender


def do(lenders: dict[str, LocalLender], deed: str, order: dict[str, object]) -> str:
    """One deed; returns the answer's line."""
    if deed == "open":
        wanted = Binding.unpack(bytes.fromhex(str(order["wanted"])))
        token = bytes.fromhex(str(order["token"]))
        if wanted.transport == "cuda_ipc":
            lenders[wanted.node] = ipc_lender(wanted.node, wanted.layout, wanted.shape, token)
        elif wanted.transport == "nixl":
            lenders[wanted.node] = nixl_lender(wanted.node, wanted.layout, wanted.shape, token)
        elif wanted.transport == "gloo":
            lenders[wanted.node] = gloo_lender(wanted.node, wanted.layout, wanted.shape, token)
        else:
            lenders[wanted.node] = shm_lender(wanted.node, wanted.layout, wanted.shape, token)
        return lenders[wanted.node].binding().pack().hex()
    lender = lenders[str(order.pop("node"))]
    if deed == "write":
        return lender.write(**order).hex()  # type: ignore[arg-type]
    if deed == "while_read":
        lender.while_read(str(order.pop("what")), **order)
        return "noted"
    assert deed in ("set_generation", "lend", "revoke", "close")
    getattr(lender, deed)(**order)
    return "done"


def main() -> None:
    """Serve until the input ends, in a child; where that is killed, in another, which imports nothing again."""
    while (child := os.fork()) and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
        pass
    if not child:
        serve()
        os._exit(0)  # whatever threads of lenders still run


def serve() -> None:
    """Say who we are, then do what each line says."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # UCX logs to standard output
    print(os.getpid(), file=answers, flush=True)
    lenders: dict[str, LocalLender] = {}
    for line in sys.stdin:
        order = json.loads(line)
        print(do(lenders, order.pop("deed"), order), file=answers, flush=True)


if __name__ == "__main__":
    main()
