"""Train the embedded model and write it as a Hugging Face folder. One seed, one thread, one result."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from muon import Muon
from text import document
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.embedded.prompts import ASSISTANT, BEGIN, END, PIECE, SYSTEM, USER

ROOT = Path(__file__).resolve().parents[2]
SPECIAL_TOKENS = (BEGIN, END, SYSTEM, USER, ASSISTANT, "<|pad|>")
CODE_WORD = re.compile(r"[A-Z]{4,}-\d{3}")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# What a token's loss counts. The first saying of a code word is noise; every later one is the lesson.
# The token that opens an answer decides between the words of the log, so it counts most.
FIRST_WORD, LATER_WORD, ANSWER_START, USER_TEXT, OTHER_TEXT = 0.05, 3.0, 10.0, 0.3, 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the curriculum at one sequence length."""

    length_tokens: int
    batch_rows: int
    num_steps: int
    drill_share: float


CURRICULUM = (
    Stage(64, 32, 260, 0.8),
    Stage(128, 16, 200, 0.4),
    Stage(256, 8, 120, 0.1),
    Stage(512, 5, 120, 0.05),
    Stage(768, 4, 300, 0.05),
)


def train_tokenizer(seed: int, vocab_size: int = 1280) -> Tokenizer:
    """A byte-level BPE over the generated text; the pieces of `PIECE` are never merged."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECE.pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document(rng, 256, drill_share=0.2) for _ in range(6000)), trainer)
    return tokenizer


def weighted_row(tokenizer: Tokenizer, rng: Random, stage: Stage) -> tuple[list[int], list[float]]:
    """One sequence of `length + 1` tokens and what each token's loss counts."""
    ids: list[int] = []
    weights: list[float] = []
    user, end, assistant = (tokenizer.token_to_id(token) for token in (USER, END, ASSISTANT))
    length = stage.length_tokens
    while len(ids) <= length:
        text = document(rng, length - len(ids), stage.drill_share)
        encoded = tokenizer.encode(text)
        starts = [start for start, _ in encoded.offsets]
        row, inside = [], False
        for token in encoded.ids:
            inside = token == user or (inside and token != end)
            row.append(USER_TEXT if inside else OTHER_TEXT)
        seen: set[str] = set()
        spans = [(found.span(), found.group()) for found in CODE_WORD.finditer(text)]
        spans.reverse()
        for at, start in enumerate(starts):
            while spans and start >= spans[-1][0][1]:
                seen.add(spans.pop()[1])
            if spans and start >= spans[-1][0][0]:
                row[at] = LATER_WORD if spans[-1][1] in seen else FIRST_WORD
                if encoded.ids[at - 1] == assistant:
                    row[at] = ANSWER_START
        ids += encoded.ids
        weights += row
    return ids[: length + 1], weights[: length + 1]


def batch(tokenizer: Tokenizer, rng: Random, stage: Stage) -> tuple[Tensor, Tensor]:
    rows = [weighted_row(tokenizer, rng, stage) for _ in range(stage.batch_rows)]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def build_model(vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=5,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, num_steps: int, peak: float, warmup: int = 60) -> float:
    """A linear start and half a cosine down to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
    return peak * (0.05 + 0.95 * cosine)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder that every Hugging Face reader understands."""
    out.mkdir(parents=True, exist_ok=True)
    half = build_model(model.config.vocab_size)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": "<|pad|>",
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def train_step(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> tuple[float, float]:
    """Gradients of one batch; returns the loss and the share of answers whose first token was right."""
    logits = model(input_ids=ids[:, :-1]).logits
    targets, weights = ids[:, 1:], weights[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    loss = (losses * weights.flatten()).sum() / weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    right = (logits.argmax(-1) == targets)[weights == ANSWER_START]
    return loss.item(), right.float().sum().item() / max(1, right.numel())


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, peak: float, out: Path) -> None:
    named = list(model.named_parameters())
    inner = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    outer = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    muon, adam = Muon(inner, weight_decay=0.05), torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0)
    rng, began = Random(seed), time.monotonic()
    recent: list[float] = []
    step, num_steps, num_tokens = 0, sum(stage.num_steps for stage in CURRICULUM), 0
    for stage in CURRICULUM:
        for _ in range(stage.num_steps):
            ids, weights = batch(tokenizer, rng, stage)
            loss, right = train_step(model, ids, weights)
            recent = [*recent[-19:], right]
            rate = learning_rate(step, num_steps, peak)
            adam.param_groups[0]["lr"] = rate
            muon.step(rate)
            adam.step()
            model.zero_grad()
            step, num_tokens = step + 1, num_tokens + ids.numel()
            if step % 20 == 0:
                spent = time.monotonic() - began
                print(
                    f"step {step}/{num_steps} length {stage.length_tokens} tokens {num_tokens} "
                    f"seconds {spent:.0f} loss {loss:.3f} answers {sum(recent) / len(recent):.3f}",
                    flush=True,
                )
            if step % 100 == 0 or step == num_steps:
                save(model, tokenizer, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "engine" / "embedded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-rate", type=float, default=4e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(arguments.seed)
    model = build_model(tokenizer.get_vocab_size())
    train(model, tokenizer, arguments.seed, arguments.peak_rate, arguments.out)


if __name__ == "__main__":
    main()
