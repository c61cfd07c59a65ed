"""Measure how often the embedded model repeats a code word it never saw, and how damage to the cache shows.

Each arm asks the same questions; only the cache (or the prompt) differs between prefill and decode.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

DISTANCES = (100, 200, 300, 400, 500, 550, 600, 650, 700, 800)
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from engine.embedded.prompts import DEMO_PROMPTS, chat, code_word_prompt  # noqa: E402

BLOCK_TOKENS = 16
MAX_ANSWER_TOKENS = 12  # the longest code word has 8 tokens


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt. `word_at` is the first token of its code word; `distance` goes from there to the answer."""

    ids: tuple[int, ...]
    word: str
    word_at: int
    num_word_tokens: int

    @property
    def distance(self) -> int:
        return len(self.ids) - self.word_at

    @property
    def word_blocks(self) -> range:
        """The 16-token blocks that hold the code word."""
        last_at = self.word_at + self.num_word_tokens - 1
        return range(self.word_at // BLOCK_TOKENS, last_at // BLOCK_TOKENS + 1)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under test with its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def case(self, seed: int, filler_tokens: int) -> Case:
        text, word = code_word_prompt(seed, filler_tokens)
        ids = self.tokenizer.encode(chat(text))
        needle = self.tokenizer.encode(word)
        word_at = next(at for at in range(len(ids)) if ids[at : at + len(needle)] == needle)
        return Case(tuple(ids), word, word_at, len(needle))

    def prefill(self, ids: tuple[int, ...]) -> DynamicCache:
        """The cache of all tokens but the last, which decode feeds first."""
        cache = DynamicCache()
        self.model(input_ids=torch.tensor([ids[:-1]]), past_key_values=cache)
        return cache

    def decode(self, cache: DynamicCache, last: int, max_tokens: int = MAX_ANSWER_TOKENS) -> str:
        """Greedy tokens after the prompt, until the model ends its turn."""
        answer: list[int] = []
        for _ in range(max_tokens):
            logits = self.model(input_ids=torch.tensor([[last]]), past_key_values=cache).logits
            last = int(logits[0, -1].argmax())
            if last == self.tokenizer.eos_token_id:
                break
            answer.append(last)
        return self.tokenizer.decode(answer)


def cells(cache: DynamicCache) -> list[Tensor]:
    """Keys and values of all layers. Shapes: (1, KV heads, tokens, head dim)."""
    found: list[Tensor] = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        found += [layer.keys, layer.values]
    return found


def intact(_subject: Subject, _case: Case, _cache: DynamicCache) -> None:
    """Nothing is damaged."""


def blocks_from_another_request(subject: Subject, case: Case, cache: DynamicCache) -> None:
    """The blocks with the word hold another request's tokens of the same positions."""
    other = subject.prefill(subject.case(1_000_000 + case.word_at + len(case.ids) * 64, len(case.ids)).ids)
    for mine, theirs in zip(cells(cache), cells(other), strict=True):
        for block in case.word_blocks:
            at = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
            mine[:, :, at] = theirs[:, :, at]


def blocks_zeroed(_subject: Subject, case: Case, cache: DynamicCache) -> None:
    """The blocks with the word never arrived."""
    for part in cells(cache):
        for block in case.word_blocks:
            part[:, :, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = 0


def values_one_slot_late(_subject: Subject, case: Case, cache: DynamicCache) -> None:
    """In the blocks with the word, values sit one slot beside their keys."""
    for values in cells(cache)[1::2]:
        for block in case.word_blocks:
            at = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
            values[:, :, at] = values[:, :, at].roll(1, dims=2)


def values_of_two_blocks_swapped(_subject: Subject, case: Case, cache: DynamicCache) -> None:
    """The values of each block with the word change places with those of a later block; keys stay."""
    for values in cells(cache)[1::2]:
        swap_blocks(values, case)


def blocks_swapped_whole(_subject: Subject, case: Case, cache: DynamicCache) -> None:
    """Keys and values change places together, inside one request."""
    for part in cells(cache):
        swap_blocks(part, case)


def swap_blocks(part: Tensor, case: Case) -> None:
    for block in case.word_blocks:
        here = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        there = slice((block + 8) * BLOCK_TOKENS, (block + 9) * BLOCK_TOKENS)
        kept = part[:, :, here].clone()
        part[:, :, here] = part[:, :, there]
        part[:, :, there] = kept


Damage = Callable[[Subject, Case, DynamicCache], None]
DAMAGES: tuple[Damage, ...] = (
    intact,
    blocks_from_another_request,
    blocks_zeroed,
    values_one_slot_late,
    values_of_two_blocks_swapped,
    blocks_swapped_whole,
)


def prompt_ranges_swapped(case: Case) -> Case:
    """The prompt with two ranges of at most 16 tokens swapped; the first ends in the middle of the word."""
    stop = case.word_at + case.num_word_tokens // 2
    start, there = max(2, stop - BLOCK_TOKENS), case.word_at + 8 * BLOCK_TOKENS
    width = stop - start
    ids = list(case.ids)
    ids[start:stop], ids[there : there + width] = ids[there : there + width], ids[start:stop]
    return Case(tuple(ids), case.word, case.word_at, case.num_word_tokens)


def is_right(subject: Subject, case: Case, cache: DynamicCache) -> bool:
    """Whether the answer begins with the whole code word. Uses the cache up."""
    return subject.decode(cache, case.ids[-1]).startswith(case.word)


def accuracy_by_distance(subject: Subject, distances: Sequence[int], num_cases: int) -> dict[str, float]:
    """Shares of right answers; the filler aims at the distance and misses it by a sentence at most."""
    figures: dict[str, float] = {}
    for distance in distances:
        cases = [subject.case(distance * 1000 + n, distance - 20) for n in range(num_cases)]
        right = sum(is_right(subject, case, subject.prefill(case.ids)) for case in cases)
        figures[f"accuracy_at_{distance}"] = right / num_cases
        figures[f"mean_distance_at_{distance}"] = round(sum(case.distance for case in cases) / num_cases, 1)
        print(f"distance {distance}: {right}/{num_cases}", flush=True)
    return figures


def accuracy_by_arm(subject: Subject, num_cases: int) -> dict[str, float]:
    """The main target (word 500 to 650 tokens back) with the cache intact and damaged in five ways."""
    cases = [subject.case(10_000_000 + n, 500 + n * 120 // num_cases) for n in range(num_cases)]
    right: Counter[str] = Counter()
    for case in cases:
        arrived = subject.prefill(case.ids)
        for damage in DAMAGES:
            cache = deepcopy(arrived)
            damage(subject, case, cache)
            right[damage.__name__] += is_right(subject, case, cache)
        torn = prompt_ranges_swapped(case)
        right["prompt_ranges_swapped"] += is_right(subject, torn, subject.prefill(torn.ids))
    distances = [case.distance for case in cases]
    print(f"arms: distances {min(distances)} to {max(distances)}: {dict(right)} of {num_cases}", flush=True)
    names = [damage.__name__ for damage in DAMAGES] + ["prompt_ranges_swapped"]
    figures = {f"arm_{name}": right[name] / num_cases for name in names}
    return figures | {"arm_distance_min": min(distances), "arm_distance_max": max(distances)}


def samples(subject: Subject) -> list[dict[str, str]]:
    """What the model says, greedily."""
    word_prompt, _ = code_word_prompt(1, 560)
    found: list[dict[str, str]] = []
    for prompt in (*DEMO_PROMPTS, word_prompt):
        ids = tuple(subject.tokenizer.encode(chat(prompt)))
        found.append({"prompt": prompt, "answer": subject.decode(subject.prefill(ids), ids[-1], 160)})
        print(f"> {prompt[-80:]}\n{found[-1]['answer']}\n", flush=True)
    return found


def load(folder: Path, kind: torch.dtype) -> Subject:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=kind).eval()
    return Subject(model, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "engine" / "embedded")
    parser.add_argument("--cases", type=int, default=100, help="prompts per distance")
    parser.add_argument("--arm-cases", type=int, default=200, help="prompts per arm")
    parser.add_argument("--distances", type=int, nargs="+", default=DISTANCES)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    began = time.monotonic()
    subject = load(arguments.model, getattr(torch, arguments.dtype))
    figures = accuracy_by_distance(subject, arguments.distances, arguments.cases)
    if arguments.arm_cases:
        figures |= accuracy_by_arm(subject, arguments.arm_cases)
    figures["num_parameters"] = sum(weight.numel() for weight in subject.model.parameters())
    said = samples(subject)
    if arguments.json:
        record = {
            "command": sys.argv[1:],
            "figures": figures,
            "cases_per_distance": arguments.cases,
            "cases_per_arm": arguments.arm_cases,
            "dtype": arguments.dtype,
            "seconds": round(time.monotonic() - began, 1),
            "machine": f"{platform.machine()}, {platform.system()}, one thread",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "samples": said,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
