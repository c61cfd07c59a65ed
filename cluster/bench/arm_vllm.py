"""The arm of vLLM's CPU build. Runs in an environment of its own, which needs nothing of ours but this package.

The threads of its engine are bound by `VLLM_CPU_OMP_THREADS_BIND`, which whoever starts this sets.
"""

import argparse
import importlib
import time

from cluster.bench.arm_server import serve, take_output


def main() -> None:
    """Runs the arm until its input ends."""
    output, args = take_output(), _arguments()
    vllm = importlib.import_module("vllm")
    engine = vllm.LLM(
        args.model,
        skip_tokenizer_init=True,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_streams,
        seed=0,
    )

    def generate(prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        params = [
            vllm.SamplingParams(max_tokens=num, temperature=0.0, ignore_eos=True, detokenize=False)
            for num in num_tokens
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        began = time.perf_counter()
        made = engine.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": [list(each.outputs[0].token_ids) for each in made]}

    serve(output, {"version": vllm.__version__}, {"generate": generate})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
