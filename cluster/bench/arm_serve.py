"""The arm of `penstock serve` with a real node beside it: gateway, scheduler and what comes from the node over a wire.

Where the gateway's arm has mock nodes in its own process, this is what a peer with its engine in another one is like.
"""

import argparse
import json
import sys

from cluster.bench.arm_server import serve, take_output
from cluster.bench.served_process import ServedProcess, free_port


def main() -> None:
    """Runs the arm until its input ends."""
    output = take_output()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    args, port = parser.parse_args(), free_port()
    command = [sys.executable, "-m", "cluster.cli", "serve", args.model, "--launcher", "local", "--aggregated", "1"]
    command += ["--port", str(port), "--grpc-port", str(free_port()), "--max-num-seqs", str(args.max_streams)]
    server = ServedProcess(command, port, "/ready")
    try:
        server.wait()
        serve(output, {"http_port": port}, {"cpu": server.cpu})
    except RuntimeError as error:
        output.write(json.dumps({"failed": str(error)}) + "\n")
        output.flush()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
