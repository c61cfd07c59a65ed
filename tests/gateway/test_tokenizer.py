"""Text to tokens and back: pieces of a stream add up to the whole, and never show half a character."""

import itertools
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, processors

from cluster.gateway.tokenizer import Tokenizer
from core.errors import ConfigError, InvalidRequest
from tests.gateway.fake_cluster import CHAT_TEMPLATE, VOCAB_SIZE, tiny_tokenizer

LONG_TEXT = "the quick brown fox " * 20_000
WORDS = ["▁", "▁▁", "▁Hello", "lo", "▁wor", "ld", "é", "漢", "\ufffd", "a", "b", "<0", "😀"]
DECODERS: dict[str, decoders.Decoder | None] = {
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "metaspace": decoders.Metaspace(),
    "wordpiece": decoders.WordPiece(),
    "none": None,
}
BYTE_LEVEL = Tokenizer(tiny_tokenizer())


def sentencepiece_style(decoder: decoders.Decoder | None) -> Tokenizer:
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    tokenizer = HFTokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.decoder = decoder
    return Tokenizer(tokenizer)


SENTENCEPIECE = {name: sentencepiece_style(decoder) for name, decoder in DECODERS.items()}


def pieces(tokenizer: Tokenizer, token_ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer, bounds = tokenizer.detokenizer(), [0, *sorted(cuts), len(token_ids)]
    parts = [detokenizer.push(token_ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return [*parts, detokenizer.finish()]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20), st.data())
def test_the_pieces_of_a_text_add_up_to_it_for_any_split(text: str, data: st.DataObject) -> None:
    token_ids = BYTE_LEVEL.encode(text)
    cuts = data.draw(st.lists(st.integers(0, len(token_ids))))
    parts = pieces(BYTE_LEVEL, token_ids, cuts)
    assert "".join(parts) == text.replace("<eos>", "") == BYTE_LEVEL.decode(token_ids)
    for part in parts:
        assert ("\ufffd" in part) <= ("\ufffd" in text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=30), st.data())
def test_any_bytes_in_any_split_decode_as_they_do_at_once(token_ids: list[int], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(token_ids))))
    assert "".join(pieces(BYTE_LEVEL, token_ids, cuts)) == BYTE_LEVEL.decode(token_ids)


@pytest.mark.parametrize("name", SENTENCEPIECE)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 255 + len(WORDS) + 4), max_size=20), st.data())
def test_other_vocabularies_decode_in_pieces_as_they_do_at_once(
    name: str, token_ids: list[int], data: st.DataObject
) -> None:
    token_ids = [token if token % 3 else 258 + token % len(WORDS) for token in token_ids]
    cuts = data.draw(st.lists(st.integers(0, len(token_ids))))
    tokenizer = SENTENCEPIECE[name]
    assert "".join(pieces(tokenizer, token_ids, cuts)) == tokenizer.decode(token_ids)


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    token_ids = BYTE_LEVEL.encode("a🏳️‍🌈é")
    parts = [part for part in pieces(BYTE_LEVEL, token_ids, list(range(len(token_ids)))) if part]
    assert parts == list("a🏳️‍🌈é")


def test_what_stays_incomplete_is_said_at_the_end() -> None:
    half = BYTE_LEVEL.encode("é")[:1]
    detokenizer = BYTE_LEVEL.detokenizer()
    assert detokenizer.push(half) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_folder_brings_special_tokens_and_chat_template(tmp_path: Path) -> None:
    raw = tiny_tokenizer()
    raw.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    raw.save(str(tmp_path / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": {"content": "<eos>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("fox")[0] == 0
    token_ids = tokenizer.encode_chat("fox")
    assert (token_ids[0], token_ids[-1]) != (0, 1)
    assert token_ids[-1] == 0
    assert tokenizer.decode(token_ids) == "<user>fox</user>"


def test_a_template_can_neither_reach_out_nor_go_wrong_unseen(tmp_path: Path) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    for template in ("{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{{ messages.append(1) }}"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        with pytest.raises(InvalidRequest, match="chat template"):
            Tokenizer.from_folder(tmp_path).encode_chat("x")


def test_chat_without_a_template_is_refused() -> None:
    assert not BYTE_LEVEL.can_chat
    with pytest.raises(InvalidRequest, match="no chat template"):
        BYTE_LEVEL.encode_chat("x")


def test_a_folder_without_a_sound_tokenizer_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    for broken in ("[]", "{", '{"chat_template": "{% if %}"}'):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(ConfigError, match="cannot be read"):
            Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_knows_is_refused_by_its_highest_token(tmp_path: Path) -> None:
    raw = tiny_tokenizer()
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path, VOCAB_SIZE).encode("fox")
    assert Tokenizer.from_folder(tmp_path, VOCAB_SIZE + 60).encode("fox"), "a model may have ids to spare"
    with pytest.raises(ConfigError, match=f"with id {VOCAB_SIZE - 1}, and config.json has vocab_size {VOCAB_SIZE - 1}"):
        Tokenizer.from_folder(tmp_path, VOCAB_SIZE - 1)
    raw.add_special_tokens(["<extra>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=f"token '<extra>' with id {VOCAB_SIZE}, and config.json"):
        Tokenizer.from_folder(tmp_path, VOCAB_SIZE)


def test_other_threads_run_while_a_long_text_is_cut_into_tokens() -> None:
    is_over, counts = threading.Event(), [0]

    def count() -> None:
        while not is_over.wait(0.001):
            counts.append(counts[-1] + 1)

    thread = threading.Thread(target=count)
    thread.start()
    before = counts[-1]
    BYTE_LEVEL.encode(LONG_TEXT)
    during = counts[-1] - before
    is_over.set()
    thread.join()
    assert during > 5, "whoever tokenizes stops the event loop, heartbeats and all"


def test_no_token_stands_for_more_characters_than_it_says() -> None:
    for tokenizer in (BYTE_LEVEL, *SENTENCEPIECE.values()):
        assert len(tokenizer.encode("▁Hello" * 50)) * tokenizer.max_token_chars >= 6 * 50
