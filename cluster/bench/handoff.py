"""The handoff tax: requests on a cluster of one prefill and one decode node, beside one fetch of the same bytes."""

import asyncio
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random

from cluster.api.v1 import inference_pb2 as pb
from cluster.bench.arms import arms_of
from cluster.bench.kv_findings import Handoff, KVFindings
from cluster.bench.kv_pairs import Pair, our_orders, our_pair
from cluster.bench.kv_plan import EMBEDDED, LAYOUTS, MIB, Cell
from cluster.bench.shapes import write_config
from cluster.console import StartProgress
from cluster.gateway.client import AsyncClient
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.service import EMBEDDED_MODEL, Service, ServiceConfig
from core.kv import num_blocks

TRANSPORT = "shm"
TOY_SHAPE = "llama-8b-kv"
ALONE_POOL_BYTES = 256 * MIB
WARM_UPS = 2
"""Of the longest prompt: as many blocks as a node has, so that afterwards no page of a pool is new."""

PREFILL_TOKENS, MAX_ROWS = 512, 8
FIRST_TOKEN, VOCABULARY = 6, 1280
TIMEOUT_S = 120.0


def measure_handoffs(found: KVFindings, model: str) -> None:
    """Start a cluster of a model, and measure all prompt lengths on it in turn. Raises ArmFailed."""
    orders = our_orders(model, ALONE_POOL_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as place,
        arms_of(orders, found.plan.num_threads) as (arms, absent),
    ):
        pair = our_pair(found, arms, absent, (TRANSPORT,))
        asyncio.run(_run(found, model, _settings(found, model, Path(place)), pair))


def _settings(found: KVFindings, model: str, folder: Path) -> NodeSettings:
    """A pool of two requests of the longest kind: small, so that all of it is in use after a few."""
    plan = found.plan
    blocks = 2 * num_blocks(max(plan.lengths) + plan.num_answered, LAYOUTS[model].block_size)
    settings = NodeSettings(EMBEDDED_MODEL, num_kv_blocks=blocks, num_threads=plan.num_threads, swap_space_bytes=0)
    if model == EMBEDDED:
        return settings
    write_config(TOY_SHAPE, "float32", folder)
    shutil.copy(EMBEDDED_MODEL / "tokenizer.json", folder)
    return replace(settings, model=folder, load_format="dummy")


async def _run(found: KVFindings, model: str, settings: NodeSettings, pair: Pair) -> None:
    live = LiveConfig(settings, slots_of(1, 1, 0, PREFILL_TOKENS, MAX_ROWS))
    with StartProgress() as progress:
        service = Service(ServiceConfig(live, model, grpc_port=0), progress.report)
        await service.start()
    try:
        async with AsyncClient(service.address) as client:
            await Handoffs(found, model, client, pair).run()
    finally:
        await service.stop()


class Handoffs:
    """One request at a time, each with a prompt that nobody has seen. Owns: the dice for prompts."""

    def __init__(self, found: KVFindings, model: str, client: AsyncClient, pair: Pair) -> None:
        self._found = found
        self._model = model
        self._client = client
        self._pair = pair
        self._chance = Random(model)

    async def run(self) -> None:
        """All lengths, again and again, the order turning round."""
        plan = self._found.plan
        for _ in range(WARM_UPS):
            await self._answer(max(plan.lengths))
        for repeat in range(plan.repeats):
            for length in plan.lengths if repeat % 2 == 0 else reversed(plan.lengths):
                await self._one(length, repeat)

    async def _one(self, length: int, repeat: int) -> None:
        stamps, timing = await self._answer(length)
        if timing.num_attempts != 1:
            self._found.absent[f"handoff {self._model} {length}, repeat {repeat}"] = "it took several attempts"
            return
        self._found.handoffs.append(
            Handoff(
                model=self._model,
                num_prompt_tokens=length,
                stamps=tuple(stamps),
                reserve_s=timing.reserve_s,
                tail_s=timing.handoff_s,
                queue_decode_s=timing.queue_decode_s,
                prefill_s=timing.prefill_s,
                alone_s=await asyncio.to_thread(self._alone, length, repeat),
            )
        )

    async def _answer(self, length: int) -> tuple[list[float], pb.Timing]:
        """When each token came, and the ledger."""
        ids = [self._chance.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length)]
        sampling = pb.SamplingParams(max_tokens=self._found.plan.num_answered, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling)
        stamps, last = list[float](), pb.GenerateResponse()
        async for last in self._client.generate(request, TIMEOUT_S):
            stamps += [time.perf_counter()] * len(last.token_ids)
        return stamps, last.timing

    def _alone(self, length: int, repeat: int) -> float:
        """The prompt's blocks in one fetch, in one piece and with digests, while the cluster is idle."""
        layout = LAYOUTS[self._model]
        num_bytes = num_blocks(length, layout.block_size) * layout.bytes_per_block
        cell = Cell(TRANSPORT, self._model, num_bytes, is_scattered=False, is_verified=True)
        seconds = sorted(self._pair.measure(cell, repeat)[0])
        return seconds[len(seconds) // 2]
