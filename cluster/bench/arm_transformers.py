"""The arms of transformers: continuous batching (`cb`), and plain `generate` one prompt at a time (`generate`)."""

import argparse
import importlib
import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from cluster.bench.arm_server import serve, take_output

TUNINGS: tuple[tuple[int, int], ...] = ((16, 256), (64, 256), (64, 1024), (64, 2048), (256, 512))
"""Block size and most tokens of a batch, tried in turn before anything counts; the fastest is kept."""


def main() -> None:
    """Runs one arm until its input ends."""
    output, args = take_output(), _arguments()
    torch.set_num_threads(args.threads)
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.device == "cpu" and importlib.util.find_spec("psutil") is None:
        _tell_memory()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
    )
    model = model.eval().to(args.device)
    arm = Batching(model, args.tokens) if args.mode == "cb" else Plain(model)
    ready = {"version": transformers.__version__, "torch": torch.__version__}
    serve(output, ready, {"tune": arm.tune, "generate": arm.generate, "gap": lambda token_ids: _gap(model, token_ids)})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("cb", "generate"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="that the KV pool must hold")
    return parser.parse_args()


class Plain:
    """`generate` with a cache that grows, or with a static one: whichever was faster when it was tuned."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: str = "dynamic"

    def tune(self, prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        """Try both kinds of cache."""
        times = {}
        for cache in ("dynamic", "static"):
            self._cache = cache
            self._answer(prompts[0], num_tokens[0])
            times[cache] = _least([lambda: self._answer(prompts[0], num_tokens[0])] * 2)
        self._cache = min(times, key=lambda cache: times[cache])
        return {"settings": {"cache": self._cache}, "tried_s": times}

    def generate(self, prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        """One prompt after the other."""
        began = time.perf_counter()
        answers = [self._answer(*each) for each in zip(prompts, num_tokens, strict=True)]
        return {"seconds": time.perf_counter() - began, "tokens": answers}

    def _answer(self, prompt: list[int], num_tokens: int) -> list[int]:
        inputs = torch.tensor([prompt], device=self._model.device)
        with torch.inference_mode():
            made = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation=None if self._cache == "dynamic" else self._cache,
            )
        answer: list[int] = made[0, len(prompt) :].tolist()
        return answer


class Batching:
    """Continuous batching through one manager, which lives as long as its settings."""

    def __init__(self, model: Any, num_pool_tokens: int) -> None:
        self._model = model
        self._num_pool_tokens = num_pool_tokens
        self._generation = importlib.import_module("transformers.generation.configuration_utils")
        self._manager: Any = None
        self._settings = TUNINGS[0]

    def tune(self, prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        """Try the settings; each answers once to get warm, and once for the clock."""
        times = {}
        for settings in TUNINGS:
            self._start(settings)
            self.generate(prompts[:1], num_tokens[:1])
            times[settings] = _least([lambda: self.generate(prompts, num_tokens)])
        self._start(min(times, key=lambda each: times[each]))
        chosen = {"block_size": self._settings[0], "max_batch_tokens": self._settings[1]}
        return {"settings": chosen, "tried_s": {f"{size}/{tokens}": each for (size, tokens), each in times.items()}}

    def generate(self, prompts: list[list[int]], num_tokens: list[int]) -> dict[str, object]:
        """All prompts at once."""
        if self._manager is None:
            self._start(self._settings)
        began = time.perf_counter()
        names = [
            self._manager.add_request(prompt, max_new_tokens=num)
            for prompt, num in zip(prompts, num_tokens, strict=True)
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = self._manager.get_result(timeout=60)
            if result is None or result.error is not None:
                raise RuntimeError(f"continuous batching ended: {result and result.error}")
            if result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
        return {"seconds": time.perf_counter() - began, "tokens": [found[name] for name in names]}

    def _start(self, settings: tuple[int, int]) -> None:
        if self._manager is not None:
            self._manager.stop(block=True)
            self._manager.destroy()
        self._settings = settings
        size, most = settings
        config = self._generation.ContinuousBatchingConfig(
            block_size=size, num_blocks=-(-self._num_pool_tokens // size) + 64, max_batch_tokens=most
        )
        greedy = self._generation.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self._manager = self._model.init_continuous_batching(greedy, config)
        self._manager.warmup()
        self._manager.start()


def _least(runs: Sequence[Any]) -> float:
    times = []
    for run in runs:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _tell_memory() -> None:
    """Without psutil, transformers takes a CPU's memory for 0 bytes and refuses to batch: it is told what there is.

    By `setattr`, for the type checker knows no such name.
    """
    cache = importlib.import_module("transformers.generation.continuous_batching.cache")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = (torch.device("cpu"), total, 0, 0)
    setattr(cache, "get_device_and_memory_breakdown", lambda: told)  # noqa: B010


def _gap(model: Any, token_ids: list[int]) -> dict[str, object]:
    """The best token after these, and how far its logit is above the second best."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids], device=model.device)).logits[0, -1].float()
    best = logits.topk(2)
    return {"token_id": int(best.indices[0]), "gap": float(best.values[0] - best.values[1])}


if __name__ == "__main__":
    main()
