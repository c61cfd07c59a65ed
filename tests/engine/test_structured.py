"""Rows with formats in whole nodes: whatever happens to one, its answer is the same and what was asked for."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import product

import jsonschema
import pytest

from core.events import AttemptEnd
from core.request import SamplingParams
from tests.engine.real_nodes import RealNodes, Setting
from tests.engine.test_structured_masks import END, FOLDER, TOKENIZER, lark, regex, schema

pytestmark = pytest.mark.slow

GATE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "level": {"type": "integer", "minimum": 0, "maximum": 99},
        "state": {"enum": ["open", "shut"]},
        "parts": {"type": "array", "items": {"enum": ["ring", "rack", "winch"]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "level", "state", "parts"],
    "additionalProperties": False,
}


FORMATS = {
    "schema": schema(GATE),
    "any object": schema({"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}),
    "regex": regex(r"[A-Z]{3}-[0-9]{3}"),
    "choice": lark('start: "open" | "shut" " now"?'),
    "grammar": lark('start: item ("; " item)*\nitem: /[a-z]{2,5}/ ": " /[0-9]{1,2}/'),
    "free": None,
}
SETTINGS = {
    "ahead of results": Setting(block_size=16, steps_in_flight=2),
    "with drafts": Setting(block_size=16, steps_in_flight=2, drafts=4),
    "prefill to decode": Setting(("prefill", "decode"), block_size=16),
    "prefill to decode, ahead": Setting(("prefill", "decode"), block_size=16, steps_in_flight=2),
    "prefill to decode, with drafts": Setting(("prefill", "decode"), block_size=16, drafts=4),
    "rows that move": Setting(("prefill", "decode", "decode"), block_size=16, moves=True),
    "rows saved": Setting(num_blocks=34, saved_blocks=80, block_size=16),
    "rows saved, with drafts": Setting(num_blocks=34, saved_blocks=80, block_size=16, drafts=4, steps_in_flight=2),
}
NUM_TOKENS = 120


def asked() -> list[tuple[list[int], SamplingParams]]:
    """Each format greedy, drawn, and with everything else that changes logits."""
    extras: tuple[dict[str, object], ...] = (
        {"temperature": 0.0},
        {"temperature": 1.0, "choice": 1},
        {"temperature": 0.9, "top_k": 30, "presence_penalty": 0.3, "logit_bias": ((28, 4.0),), "min_tokens": 6},
    )
    return [
        (
            TOKENIZER.encode_chat(f"Report gate {number} please."),
            SamplingParams(NUM_TOKENS, seed=number, format=wanted, **extra),  # type: ignore[arg-type]
        )
        for number, (wanted, extra) in enumerate(product(FORMATS.values(), extras))
    ]


def answers(setting: Setting, log_of: Callable[[int], Sequence[int]] = lambda number: ()) -> list[list[int]]:
    """All of `asked`, each begun with what an attempt before it has told."""
    nodes = RealNodes(FOLDER, setting, "float32")
    try:
        attempts = [nodes.submit(f"r{i}", *each, log_of(i)) for i, each in enumerate(asked())]
        nodes.run_dry()
        assert all(nodes.answers[attempt].end is AttemptEnd.FINISHED for attempt in attempts)
        last = nodes.nodes[nodes.names[-1]].stats()
        assert last.num_accepted > 0 or not setting.drafts
        assert last.num_saved == last.num_restored > 0 or not setting.saved_blocks
        assert not setting.moves or last.num_migrated > 0
        return [nodes.answers[attempt].token_ids for attempt in attempts]
    finally:
        nodes.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    """Each answer of a node that does nothing else."""
    return answers(Setting(block_size=16))


def text_of(token_ids: Sequence[int]) -> str | None:
    """The answer's text; None where it was cut before its end."""
    return TOKENIZER.decode(list(token_ids[: token_ids.index(END)])) if END in token_ids else None


def test_complete_answers_of_a_real_model_are_what_was_asked_for(undisturbed: list[list[int]]) -> None:
    patterns = {"regex": r"[A-Z]{3}-[0-9]{3}", "choice": "open|shut( now)?"}
    patterns["grammar"] = r"[a-z]{2,5}: [0-9]{1,2}(; [a-z]{2,5}: [0-9]{1,2})*"
    num_complete = dict.fromkeys(FORMATS, 0)
    for name, found in zip((name for name in FORMATS for _ in range(3)), undisturbed, strict=True):
        text = text_of(found)
        if text is None:
            continue
        num_complete[name] += 1
        if name in patterns:
            assert re.fullmatch(patterns[name], text), (name, text)
        elif name != "free":
            wanted = FORMATS[name]
            assert wanted is not None
            jsonschema.validate(json.loads(text), json.loads(wanted.text))
    assert all(num_complete[name] == 3 for name in ("schema", "regex", "choice")), num_complete


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_answer_is_the_same_token_by_token_whatever_happens_to_its_row(
    setting: str, undisturbed: list[list[int]]
) -> None:
    assert answers(SETTINGS[setting]) == undisturbed


@pytest.mark.parametrize("num_told", [1, 2, 7, 23])
def test_an_attempt_that_goes_on_from_the_log_gives_the_answer_that_was_begun(
    num_told: int, undisturbed: list[list[int]]
) -> None:
    """A lost node, or a row that was preempted: the next attempt replays what was told, and no state came with it."""
    for setting in (Setting(("prefill", "decode"), block_size=16), Setting(block_size=16, drafts=3)):
        assert answers(setting, lambda number: undisturbed[number][:num_told]) == undisturbed
