"""The prompts of the demo and of the tests: questions the embedded model answers.

A code word prompt proves that the whole KV cache arrived. The word is invented, so it cannot be
guessed; it stands hundreds of tokens before the question, so only the cache can carry it.
"""

from __future__ import annotations

import hashlib
import re
from random import Random

from engine.embedded.phrases import DAYS, PEOPLE, clock, log_line, machine

BEGIN, END, SYSTEM, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

DEMO_PROMPTS: tuple[str, ...] = (
    "What is a penstock?",
    "Write a log entry for a stormy night.",
    "What should I do if a bearing becomes hot?",
    "Tell me about a surge tank.",
    "Write a log entry for a frosty night.",
    "What should I do if the water level rises too fast?",
)

# Where the tokenizer starts a new token at the latest. Most pieces are one token, so counting
# them measures a prompt without the tokenizer.
PIECE = re.compile(r"[A-Z]{2}| ?[A-Z]?[a-z]+| ?\d|[A-Z]| ?[^\sA-Za-z\d]+|\s+")

_CONSONANTS, _VOWELS = "BDFGHJKLMNPRSTVZ", "AEIOU"
_HELD_OUT_ONE_IN = 8


def chat(text: str) -> str:
    """One user turn in the form of the chat template, ready for the answer. Encode it as it is."""
    return f"{BEGIN}{USER}{text}{END}{ASSISTANT}"


def is_held_out(word: str) -> bool:
    """Whether training never saw this code word; its hash decides."""
    return hashlib.sha256(word.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0


def code_word(rng: Random, held_out: bool) -> str:
    """An invented word such as ``ZOVEKAMI-417`` from the wanted side of the split."""
    while True:
        syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((3, 4))))
        word = f"{''.join(syllables)}-{rng.randrange(100, 1000)}"
        if is_held_out(word) == held_out:
            return word


def code_word_line(rng: Random, what: str, word: str) -> str:
    """The sentence that gives a machine its code word."""
    return rng.choice(
        (
            f"The code word of {what} is {word}.",
            f"At {clock(rng)} {rng.choice(PEOPLE)} noted that the code word of {what} is {word}.",
            f"For this shift the code word of {what} is {word}.",
            f"Please remember: the code word of {what} is {word}.",
        )
    )


def other_name_line(rng: Random, name: str) -> str:
    """A sentence with an invented name that looks like a code word and is none."""
    return rng.choice(
        (
            f"The crate beside the door is marked {name}.",
            f"The boat {name} lay at the pier until {clock(rng)}.",
            f"{rng.choice(PEOPLE)} brought a barrel of oil with the number {name}.",
            f"The old key has the tag {name}.",
        )
    )


def code_word_question(rng: Random, what: str) -> str:
    """Asks for the code word of `what`."""
    return rng.choice(
        (
            f"What is the code word of {what}?",
            f"Repeat the code word of {what}.",
            f"Which word in the log is the code word of {what}?",
            f"Please tell me the code word of {what}.",
        )
    )


def num_pieces(text: str) -> int:
    """About how many tokens a text has, counted without the tokenizer."""
    return len(PIECE.findall(text))


def filler(rng: Random, num_tokens: int) -> list[str]:
    """Log lines of about `num_tokens` tokens together."""
    lines: list[str] = []
    left = num_tokens
    while left > 0:
        lines.append(log_line(rng))
        left -= num_pieces(" " + lines[-1])
    return lines


def code_word_prompt(seed: int, filler_tokens: int) -> tuple[str, str]:
    """A log book and a question about it; and the code word that the answer must begin with.

    The wanted word stands first, with about `filler_tokens` tokens between it and the question. Two
    names that look like code words stand in between, so that copying just any such name is wrong.
    """
    rng = Random(seed)
    what, word = machine(rng), code_word(rng, held_out=True)
    first = code_word_line(rng, what, word)
    others = [other_name_line(rng, code_word(rng, held_out=True)) for _ in range(2)]
    lines = filler(rng, filler_tokens - sum(num_pieces(" " + line) for line in others))
    for line in others:
        lines.insert(rng.randrange(len(lines) + 1), line)
    question = code_word_question(rng, what)
    return f"Log book of {rng.choice(DAYS)}. {first} {' '.join(lines)} {question}", word
