"""Our arm: a mixed node's machine and the executor, driven in one process."""

import argparse
import time
from pathlib import Path

from cluster.bench.arm_server import serve, take_output
from cluster.bench.bare_engine import BareEngine, EngineChoice
from cluster.bench.node_loop import Ask, NodeLoop
from cluster.node import Node, NodeConfig
from core.ids import NodeId
from core.mix import mix_of
from engine.native.library import load

PREFILL_TOKENS = 2048
"""Of a step: nobody waits for a first token here, and all prompts come at once. vLLM's own budget is no smaller."""


def main() -> None:
    """Runs the arm until its input ends."""
    output, args = take_output(), _arguments()
    choice = EngineChoice(
        args.model, args.dtype, args.device, args.threads, args.quantization, block_size=args.block_size
    )
    with BareEngine(choice, args.blocks) as engine:
        engine.executor.warm_up()
        arm = Arm(engine, _node(engine, args))
        ready = {"native": args.device == "cpu" and load() is not None, "blocks": args.blocks}
        serve(output, ready, {"generate": arm.generate, "step": arm.step})


class Arm:
    """Answers prompts through the machine, and times single steps of the executor."""

    def __init__(self, engine: BareEngine, node: Node) -> None:
        self._loop = NodeLoop(node, engine.executor)
        self._probe = engine.probe()

    def generate(self, prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        """All prompts at once."""
        asks = [Ask(tuple(prompt), num) for prompt, num in zip(prompts, num_tokens, strict=True)]
        began = time.perf_counter()
        answers = self._loop.run(asks)
        return {"seconds": time.perf_counter() - began, "tokens": [list(answer) for answer in answers]}

    def step(
        self, prefill_tokens: int, prefill_context: int, rows: int, context: int, repeats: int
    ) -> dict[str, object]:
        """One kind of step; overwrites blocks of the pool, so no answer may follow."""
        sample = self._probe.sample(prefill_tokens, prefill_context, rows, context, repeats)
        return {"seconds": list(sample.seconds)}


def _node(engine: BareEngine, args: argparse.Namespace) -> Node:
    config = NodeConfig(
        layout=engine.layout.id(engine.info.digest),
        kv=engine.layout,
        num_blocks=args.blocks,
        max_model_len=engine.info.max_model_len,
        eos_token_ids=frozenset(),
        mix=mix_of("mixed", args.prefill_tokens, args.max_streams),
        max_steps_in_flight=2 if args.device == "cuda" else 1,
        max_draft_tokens=args.max_drafts,
    )
    return Node(NodeId("bench@1"), config)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--max-drafts", type=int, default=0)
    parser.add_argument("--max-streams", type=int, required=True)
    parser.add_argument("--prefill-tokens", type=int, default=PREFILL_TOKENS)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--blocks", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
