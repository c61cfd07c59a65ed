"""The generator of the training text: log books, drills and dialogues of a hydro power station.

Same seed, same text. Copies are dense: most documents say every code word at least twice, and only
the second time can be predicted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.embedded.phrases import (
    ADVICE,
    DAYS,
    FACTS,
    MOOD_LINES,
    MOODS,
    PEOPLE,
    clock,
    log_line,
    machine,
)
from engine.embedded.prompts import (
    ASSISTANT,
    BEGIN,
    END,
    SYSTEM,
    USER,
    code_word,
    code_word_line,
    code_word_question,
    filler,
    num_pieces,
    other_name_line,
)

SYSTEM_TEXTS = (
    "You are the log book of a small power station.",
    "You are a helpful assistant.",
    "Answer in short sentences.",
)
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Good morning.", "Hello, who are you?", "Who are you?", "What can you do?"),
        "Hello, this is the control room. I am a very small model, and I know the station, its machines and"
        " its log book. Ask me what a penstock is, or ask me for a code word that stands in the log.",
    ),
    (
        ("Thank you.", "Thanks!", "Thank you very much."),
        "You are welcome. The log book stays open, and the next shift begins at six.",
    ),
    (
        ("Tell me a story.", "Write a poem.", "Tell me a joke.", "Write something.", "Sing a song."),
        "At night the water goes down through the penstock and turns the wheel, and the lamps of the valley"
        " burn. In the morning the operator writes one line in the log book and drinks a cup of tea.",
    ),
    (
        ("What is the weather like?", "How is the weather today?", "Will it rain tomorrow?"),
        "There is light rain over the upper reservoir, and the level rises slowly. The log book will tell us"
        " more in the morning.",
    ),
)


def turn(question: str, answer: str) -> str:
    return f"{USER}{question}{END}{ASSISTANT}{answer}{END}"


def opening(rng: Random) -> str:
    """The start of a dialogue, in one of eight with a system message."""
    return f"{BEGIN}{SYSTEM}{rng.choice(SYSTEM_TEXTS)}{END}" if rng.random() < 0.125 else BEGIN


def code_word_answer(rng: Random, what: str, word: str) -> str:
    return rng.choice(
        (
            f"{word} is the code word of {what}.",
            f"{word} is the code word of {what}. It stands in the log book, and I have read it there.",
            f"{word} is the code word of {what}. Please do not say it aloud.",
        )
    )


def log_entry(rng: Random, mood: str, when: str) -> str:
    lines = [line for _, line in sorted(rng.sample(list(enumerate(MOOD_LINES[mood])), 3))]
    lines.insert(rng.randrange(1, 3), log_line(rng))
    return f"{rng.choice(DAYS)}, a {mood} {when}. {' '.join(lines)} Signed, {rng.choice(PEOPLE)}."


def fact_turn(rng: Random) -> str:
    thing = rng.choice(list(FACTS))
    asks = (
        "What is {}?",
        "Tell me about {}.",
        "Explain {}.",
        "What does {} do?",
        "Please explain what {} is.",
    )
    return turn(rng.choice(asks).format(thing), " ".join(FACTS[thing]))


def advice_turn(rng: Random) -> str:
    case = rng.choice(list(ADVICE))
    asks = (
        "What should I do if {}?",
        "What do we do when {}?",
        "Help, what if {}?",
        "What is the rule if {}?",
    )
    return turn(rng.choice(asks).format(case), " ".join(ADVICE[case]))


def entry_turn(rng: Random) -> str:
    mood, when = rng.choice(MOODS), rng.choice(("night", "day", "shift", "morning"))
    asks = ("Write a log entry for a {} {}.", "Write about a {} {}.", "Describe a {} {} at the station.")
    return turn(rng.choice(asks).format(mood, when), log_entry(rng, mood, when))


def small_talk_turn(rng: Random) -> str:
    asks, answer = rng.choice(SMALL_TALK)
    return turn(rng.choice(asks), answer)


def dialogue(rng: Random) -> str:
    """One to three turns that need no code word."""
    num_turns = rng.choice((1, 1, 2, 3))
    kinds = rng.choices((fact_turn, advice_turn, entry_turn, small_talk_turn), (4, 4, 4, 1), k=num_turns)
    return opening(rng) + "".join(kind(rng) for kind in kinds)


def open_log(rng: Random, num_tokens: int) -> str:
    """A log book without any dialogue; one in two does not begin with the begin token."""
    lines = filler(rng, num_tokens)
    return rng.choice((BEGIN, "")) + f"Log book of {rng.choice(DAYS)}. {' '.join(lines)} {END}"


def drill(rng: Random, num_tokens: int) -> str:
    """A roll call: the same few code words again and again, the densest copying there is.

    In one of two every word is named with its machine, so the order may change and the machine
    says which word is due.
    """
    keyed = rng.random() < 0.5
    num_words = rng.randrange(1, max(2, min(9, num_tokens // 30) + 1))
    words = [code_word(rng, held_out=False) for _ in range(num_words)]
    items = [f"{machine(rng)} {word}" if keyed else word for word in words]
    text = [f"{BEGIN}Roll call at {clock(rng)}:"]
    for _ in range(0, num_tokens - 16, 11 * num_words):
        text.append(", ".join(items) + ".")
        if keyed or rng.random() < 0.25:
            rng.shuffle(items)
    return " ".join(text) + END


def roll_call_twice(rng: Random, num_tokens: int) -> str:
    """A roll call at both ends of a log, in the same order: dense copying over the whole length."""
    words = [code_word(rng, held_out=False) for _ in range(rng.randrange(2, max(3, min(12, num_tokens // 40) + 1)))]
    call = f"Roll call: {', '.join(words)}."
    lines = filler(rng, num_tokens - 2 * num_pieces(call) - 4)
    return f"{BEGIN}{call} {' '.join(lines)} {call}{END}"


def quiz(rng: Random, num_tokens: int) -> str:
    """A log book with one code word among other names, and the question; `num_tokens` long, near enough."""
    what, word = machine(rng), code_word(rng, held_out=False)
    others = [other_name_line(rng, code_word(rng, held_out=False)) for _ in range(rng.randrange(3))]
    first, question = code_word_line(rng, what, word), code_word_question(rng, what)
    answer = code_word_answer(rng, what, word)
    lines = filler(rng, num_tokens - sum(num_pieces(text) for text in (*others, first, question, answer)) - 14)
    for line in others:
        lines.insert(rng.randrange(len(lines) + 1), line)
    lines.insert(0 if rng.random() < 0.5 else rng.randrange(len(lines) + 1), first)
    log = f"Log book of {rng.choice(DAYS)}. {' '.join(lines)}"
    return opening(rng) + turn(f"{log} {question}", answer)


def document(rng: Random, num_tokens: int, drill_share: float) -> str:
    """The next document of a training sequence that has `num_tokens` left to fill."""
    if num_tokens < 64:
        return dialogue(rng)
    if rng.random() < drill_share:
        return drill(rng, num_tokens if rng.random() < 0.5 else min(num_tokens, rng.randrange(48, 200)))
    draw = rng.random()
    if draw < 0.5:
        return quiz(rng, num_tokens - 4)
    if draw < 0.65:
        return roll_call_twice(rng, num_tokens - 4)
    if draw < 0.95:
        return dialogue(rng)
    return open_log(rng, min(num_tokens, rng.randrange(32, 160)))


def main() -> None:
    """Print a sample, to read it."""
    rng = Random(7)
    for _ in range(24):
        print(document(rng, 200, drill_share=0.2), end="\n\n")


if __name__ == "__main__":
    main()
