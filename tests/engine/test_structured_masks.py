"""Which tokens a format lets come, computed a second way, and how they are drawn."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers

from cluster.gateway.tokenizer import Tokenizer
from core.ids import AttemptId
from core.request import AnswerFormat, FormatKind, SamplingParams
from engine.embedded import prompts
from engine.formats import FormatCompiler, FormatError, read_format
from engine.guides import Guides
from engine.masks import Masks, empty_bits, flags_of, restrict
from engine.sampler import SampleLine, sample

FOLDER = Path(prompts.__file__).parent
VOCAB_SIZE, END = 1280, 1
TOKENIZER = Tokenizer.from_folder(FOLDER)
TOKEN_BYTES = [TOKENIZER.token_bytes(token) for token in range(VOCAB_SIZE)]


def schema(of: object) -> AnswerFormat:
    return AnswerFormat(FormatKind.JSON_SCHEMA, json.dumps(of))


def regex(text: str) -> AnswerFormat:
    return AnswerFormat(FormatKind.REGEX, text)


def lark(text: str) -> AnswerFormat:
    return AnswerFormat(FormatKind.LARK, text)


@pytest.fixture(scope="module")
def compiler() -> FormatCompiler:
    return FormatCompiler(FOLDER, VOCAB_SIZE, {END})


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Line:
    """One row as guides see it."""

    def __init__(self, guides: Guides, sampling: SamplingParams) -> None:
        self.token_ids: list[int] = [9, 9]
        self.num_prompt_tokens = 2
        self.guide = guides.open(AttemptId("a#0"), sampling)
        self._guides = guides

    def allowed(self, drafts: tuple[int, ...] = ()) -> list[set[int]]:
        """What may come next, and after each draft."""
        begun = self._guides.begin([(self, drafts)])
        assert begun is not None
        flags = np.unpackbits(begun.result().bits.view(np.uint8), axis=1, bitorder="little")
        return [set(np.flatnonzero(line).tolist()) for line in flags]


def guided(
    compiler: FormatCompiler, sampling: SamplingParams, run: Callable[[Line], None], vocab_size: int = VOCAB_SIZE
) -> None:
    guides = Guides(compiler, vocab_size, {END})
    try:
        run(Line(guides, sampling))
    finally:
        guides.close()


def expected(texts: Sequence[bytes], so_far: bytes) -> set[int]:
    """Tokens after which one of all the texts that there are can still come, and the end where it has."""
    found = {
        token
        for token, data in enumerate(TOKEN_BYTES)
        if data and any(text.startswith(so_far + data) for text in texts)
    }
    return found | ({END} if so_far in texts else set())


def shared(texts: Sequence[bytes]) -> bytes:
    """What all of them begin with."""
    num = next((i for i, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1), min(map(len, texts)))
    return texts[0][:num]


def spaced(*parts: str) -> list[bytes]:
    """JSON's parts with a space, or none, between each two of them."""
    gaps = product(["", " "], repeat=len(parts) - 1)
    return ["".join(a + b for a, b in zip(parts, (*gap, ""), strict=True)).encode() for gap in gaps]


LANGUAGES: dict[str, tuple[AnswerFormat, list[bytes]]] = {
    "choice": (lark('start: "open" | "opened" | "shut"'), [b"open", b"opened", b"shut"]),
    "regex": (
        regex("(gate|winch) [1-3]{1,2}"),
        [f"{a} {b}{c}".encode() for a in ("gate", "winch") for b in "123" for c in ("", *"123")],
    ),
    "grammar": (
        lark('start: part (" and " part)?\npart: "the " ("ring" | "rack")'),
        [a + b for a in (b"the ring", b"the rack") for b in (b"", b" and the ring", b" and the rack")],
    ),
    "GBNF": (
        read_format(FormatKind.LARK, 'root ::= "level " digit digit?\ndigit ::= [0-2]'),
        [f"level {a}{b}".encode() for a in "012" for b in ("", *"012")],
    ),
    "schema, enum": (schema({"enum": ["open", 7, None, True]}), [b'"open"', b"7", b"null", b"true"]),
    "several bytes a character": (regex("für 漢字|fünf 😀"), ["für 漢字".encode(), "fünf 😀".encode()]),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_may_come_is_what_leads_to_one_of_the_texts_at_every_place(
    language: str, compiler: FormatCompiler
) -> None:
    wanted, texts = LANGUAGES[language]

    def run(line: Line) -> None:
        _walk(line, texts, b"", depth=0)

    guided(compiler, SamplingParams(64, format=wanted), run)


def _walk(line: Line, texts: Sequence[bytes], so_far: bytes, depth: int) -> None:
    """Look at every place that a few tokens lead to; a row can only go on, so each has a line of its own.

    Where the next bytes are the same in all texts, only the token may come that text is usually cut into there.
    """
    (found,), wanted = line.allowed(), expected(texts, so_far)
    forced = shared([text[len(so_far) :] for text in texts if text.startswith(so_far)])
    if forced and found != wanted:
        (token,) = found
        assert token in wanted and (forced.startswith(TOKEN_BYTES[token]) or TOKEN_BYTES[token].startswith(forced))
    else:
        assert found == wanted, so_far
    for token in sorted(found - {END}, key=lambda token: len(TOKEN_BYTES[token]))[: 3 if depth < 3 else 1]:
        branch = Line(line._guides, SamplingParams(64, format=line.guide.sampling.format))  # type: ignore[union-attr]
        branch.token_ids = [*line.token_ids, token]
        _walk(branch, texts, so_far + TOKEN_BYTES[token], depth + 1)


def test_json_is_compact_or_has_a_space_or_an_indented_line_and_no_more(compiler: FormatCompiler) -> None:
    wanted = schema(
        {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    )
    matcher = compiler.compile(wanted)
    for text in (*spaced("{", '"a"', ":", "1", "}"), b'{\n  "a": 1\n}', b'{\n\t"a":\n1}'):
        assert _accepts(matcher.deep_copy(), text), text
    for text in (b' {"a":1}', b'{  "a":1}', b"{\n" + b" " * 33 + b'"a":1}', b'{"a":1} ', b'{"a":1}\n', b"{}"):
        assert not _accepts(matcher.deep_copy(), text), text


def _accepts(matcher: object, text: bytes) -> bool:
    """By single bytes, whose tokens the vocabulary all has."""
    singles = {data: token for token, data in reversed(list(enumerate(TOKEN_BYTES))) if len(data) == 1}
    ids = [singles[bytes([byte])] for byte in text]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()  # type: ignore[attr-defined]


def test_drafts_are_cut_where_the_format_ends_them_and_their_masks_are_those_of_plain_steps(
    compiler: FormatCompiler,
) -> None:
    ids = TOKENIZER.encode("open the gate")

    def run(line: Line) -> None:
        wrong = TOKENIZER.encode(" now")
        guides: Guides = line._guides
        assert guides.fitting(line, (*ids[:2], *wrong)) == tuple(ids[:2])
        assert guides.fitting(line, (*ids, END, END)) == tuple(ids), "the end is never drafted"
        assert guides.fitting(line, (END,)) == ()
        together = line.allowed(tuple(ids))
        alone = []
        for place in range(len(ids) + 1):
            line.token_ids = [9, 9, *ids[:place]]
            alone += line.allowed()
        assert together == alone
        assert together[-1] == {END}

    guided(compiler, SamplingParams(64, format=regex("open the gate")), run)


def test_before_min_tokens_no_end_comes_unless_nothing_else_can(compiler: FormatCompiler) -> None:
    letter, stop = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    sampling = SamplingParams(64, min_tokens=4, stop_token_ids=(stop,), format=regex("a[ab]{0,5}"))

    def run(line: Line) -> None:
        for place in range(7):
            line.token_ids = [9, 9, *[letter] * place]
            (found,) = line.allowed()
            may_end = place >= 4 or place == 6
            assert (END in found, stop in found) == (may_end, may_end and 0 < place < 6), place

    guided(compiler, sampling, run)

    def complete(line: Line) -> None:
        line.token_ids = [9, 9, letter]
        assert line.allowed() == [{END}]
        line.token_ids = [9, 9, letter, END, END]
        assert line.allowed() == [{END}], "with ignore_eos, which only lengthens the answer"

    guided(compiler, SamplingParams(64, min_tokens=60, ignore_eos=True, format=regex("a")), complete)


def test_a_row_that_leaves_its_format_may_draw_nothing_and_says_why_once(
    compiler: FormatCompiler, caplog: pytest.LogCaptureFixture
) -> None:
    def run(line: Line) -> None:
        line.token_ids = [9, 9, TOKENIZER.encode("x")[0]]
        assert line.allowed() == [set()]
        assert line.allowed() == [set()]

    guided(compiler, SamplingParams(64, format=regex("a+")), run)
    assert len(caplog.messages) == 1
    assert "does not belong there" in caplog.messages[0]


def test_a_vocabulary_with_byte_fallback_writes_every_character_in_words_or_bytes(tmp_path: Path) -> None:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é", "{"]
    ids = {word: token for token, word in enumerate(words)}
    tokenizer = HFTokenizer(models.BPE(ids, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    like_llama = FormatCompiler(tmp_path, len(ids), {ids["</s>"]})

    def allowed(pattern: str, *so_far: str) -> set[str]:
        found: set[str] = set()

        def run(line: Line) -> None:
            line.token_ids = [9, 9, *(ids[word] for word in so_far)]
            found.update(words[token] for token in line.allowed()[0])

        guided(like_llama, SamplingParams(64, format=regex(pattern)), run, len(ids))
        return found

    assert allowed("[ab]( a)?") == {"a", "b", "<0x61>", "<0x62>"}
    assert allowed("[ab]( a)?", "a") == {"</s>", "▁", "▁a", "<0x20>"}
    assert allowed("[ñé]") == {"é", "<0xC3>"}
    assert allowed("漢|語", "<0xE6>") == {"<0xBC>"}


class Panicking(FormatCompiler):
    """A library that breaks down in a way that is no Exception, as extensions in Rust do."""

    def compile(self, wanted: AnswerFormat) -> Any:
        raise SystemExit(f"cannot make {wanted.kind}")


def test_a_library_that_breaks_down_ends_the_answer_and_not_the_thread(
    compiler: FormatCompiler, caplog: pytest.LogCaptureFixture
) -> None:
    def run(line: Line) -> None:
        assert line.allowed() == [set()]
        assert line._guides.fitting(line, (7, 8)) == ()

    guided(Panicking(FOLDER, VOCAB_SIZE, {END}), SamplingParams(64, format=regex("a")), run)
    assert caplog.messages == ["the format of a#0 cannot be followed further: SystemExit: cannot make regex"]


def test_a_lexer_that_others_have_filled_is_made_anew_and_the_answer_goes_on(compiler: FormatCompiler) -> None:
    """Clones share what their lexer has learnt, and its limits: answers must not depend on who came before."""
    wanted, letter = regex("[a-z]{1,90000}"), TOKENIZER.encode("a")[0]
    filled = compiler.compile(wanted)
    while filled.consume_token(letter) and not filled.is_error():
        filled.compute_bitmask()
    late = compiler.compile(wanted)
    late.consume_token(TOKENIZER.encode("b")[0])
    late.compute_bitmask()
    assert late.is_error(), "the limit is met by all"

    def run(line: Line) -> None:
        for text in ("", "b", "ba", "bag"):
            line.token_ids = [9, 9, *TOKENIZER.encode(text)]
            (found,) = line.allowed()
            assert {letter, TOKENIZER.encode("g")[0]} <= found

    guided(compiler, SamplingParams(64, format=wanted), run)


def test_a_format_that_needs_what_the_vocabulary_lacks_is_refused_or_fails_the_row(tmp_path: Path) -> None:
    described = json.loads((FOLDER / "tokenizer.json").read_text())
    specials = {entry["content"]: entry["id"] for entry in described["added_tokens"]}
    described["model"] |= {"vocab": specials | {"a": 6, "b": 7}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    poor = FormatCompiler(tmp_path, 16, {END})
    with pytest.raises(FormatError, match=r"no token|no answer"):
        poor.check(regex("[xy]a"))
    poor.check(regex("a[xy]"))

    def run(line: Line) -> None:
        line.token_ids = [9, 9, 6]
        assert line.allowed() == [set()]

    guided(poor, SamplingParams(64, format=regex("a[xy]")), run, vocab_size=16)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def masks_of(vocab: int, *allowed: Iterable[int]) -> Masks:
    bits = empty_bits(len(allowed), vocab)
    for line, tokens in enumerate(allowed):
        for token in tokens:
            bits.view(np.uint32)[line, token // 32] |= np.uint32(1 << token % 32)
    return Masks(tuple(range(len(allowed))), bits)


@pytest.mark.parametrize("vocab", [31, 32, 33, 100, 1000])
def test_masked_logits_are_minus_infinity_and_the_others_as_they_were(vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(5, vocab)
    allowed = [set(torch.randperm(vocab)[: 1 + 7 * row].tolist()) for row in range(3)]
    changed = logits.clone()
    restrict(changed, [4, 0, 2], masks_of(vocab, *allowed).bits)
    for row, tokens in zip((4, 0, 2), allowed, strict=True):
        expected_row = [logits[row, t].item() if t in tokens else -torch.inf for t in range(vocab)]
        assert changed[row].tolist() == expected_row
    assert changed[[1, 3]].tolist() == logits[[1, 3]].tolist()


@pytest.mark.parametrize("vocab", [31, 32, 33, 100])
def test_a_device_unpacks_bits_as_the_host_does(vocab: int) -> None:
    words = np.random.default_rng(vocab).integers(-(2**31), 2**31, (6, -(-vocab // 32)), np.int32, endpoint=False)
    found = flags_of(torch.from_numpy(words), vocab)
    assert found.tolist() == np.unpackbits(words.view(np.uint8), axis=1, count=vocab, bitorder="little").tolist()


def test_masks_read_nothing_back_from_a_device() -> None:
    """On tensors without data, whatever asks for a value raises."""
    logits = torch.empty(3, 50, device="meta")
    lines = [SampleLine(SamplingParams(9, temperature=temperature), 5) for temperature in (0.0, 1.0, 0.5)]
    drawn = sample(logits, lines, (END,), masks_of(50, (1,), (), (3, 4)))
    assert drawn.token_ids.shape == (3,)


def test_filters_penalties_and_biases_choose_among_what_may_come() -> None:
    logits = torch.arange(200.0)[None].repeat(7, 1) / 20
    allowed = (3, 40, 77)
    params = [
        SamplingParams(9, temperature=0.0),
        SamplingParams(9, temperature=0.0, logit_bias=((3, 90.0), (199, 100.0))),
        SamplingParams(9, temperature=1.5, top_k=2),
        SamplingParams(9, temperature=1.0, top_p=0.3),
        SamplingParams(9, temperature=1.0, min_p=0.9),
        SamplingParams(9, temperature=2.0, top_k=50),
        SamplingParams(9, temperature=2.0),
    ]
    seen: list[set[int]] = [set() for _ in params]
    for seed in range(60):
        lines = [SampleLine(replace(each, seed=seed), 5) for each in params]
        drawn = sample(logits, lines, (END,), masks_of(200, *[allowed] * 7))
        assert drawn.is_finite.all()
        for found, token in zip(seen, drawn.token_ids.tolist(), strict=True):
            found.add(token)
    assert seen == [{77}, {3}, {40, 77}, {77}, {77}, {3, 40, 77}, {3, 40, 77}]


def test_no_allowed_token_or_logits_that_are_not_finite_fail_the_line_and_no_other() -> None:
    logits = torch.zeros(4, 50)
    logits[1, 7] = torch.nan
    logits[2, 8] = torch.inf
    masks = masks_of(50, (), (3,), (3,), (3,))
    lines = [SampleLine(SamplingParams(9, temperature=temperature), 5) for temperature in (0.0, 1.0, 0.0, 1.0)]
    drawn = sample(logits, lines, (END,), masks)
    assert drawn.is_finite.tolist() == [False, False, False, True]
    assert drawn.token_ids[3] == 3
