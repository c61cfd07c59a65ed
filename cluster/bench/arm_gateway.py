"""The gateway's arm: a real gateway with both its servers over mock nodes, in a process of its own."""

import argparse
import asyncio
import threading
import time

from cluster.bench.arm_server import serve, take_output
from cluster.bench.gateway_nodes import MockNodes
from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.gateway import Gateway
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.server import HttpServer
from cluster.gateway.streams import Streams
from cluster.gateway.tokenizer import Tokenizer
from cluster.service import EMBEDDED_MODEL
from core.ids import GatewayId
from engine.model_info import LoadFormat, read_model_info

MAX_MODEL_LEN = 32_768


class _Running:
    """Both servers on a loop and thread of their own. Owns: them."""

    def __init__(self, step_s: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)
        self._thread.start()
        self.ready = asyncio.run_coroutine_threadsafe(self._start(step_s), self._loop).result()

    async def _start(self, step_s: float) -> dict[str, object]:
        info = read_model_info(EMBEDDED_MODEL, LoadFormat.SAFETENSORS)
        nodes = MockNodes(step_s)
        model = ServedModel("mock", info.vocab_size, MAX_MODEL_LEN, 16)
        tokenizer = Tokenizer.from_folder(EMBEDDED_MODEL, info.vocab_size)
        limits = Limits(max_streams_per_connection=1024)
        gateway = Gateway(model, tokenizer, Streams(GatewayId("gateway")), limits, nodes.tell)
        nodes.handle = gateway.handle
        state = ClusterState((), ())
        self._grpc = GrpcServer(gateway, lambda: state)
        self._http = HttpServer(Door(gateway, lambda: state, HttpConfig(port=0)))
        await self._grpc.start()
        return {"http_port": await self._http.start(), "grpc": self._grpc.address}


def main() -> None:
    """Runs the arm until its input ends."""
    output = take_output()
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-ms", type=float, required=True)
    running = _Running(parser.parse_args().step_ms / 1000)
    serve(output, running.ready, {"cpu": lambda: {"cpu_s": time.process_time()}})


if __name__ == "__main__":
    main()
