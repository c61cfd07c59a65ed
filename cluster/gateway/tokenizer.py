"""Text to token ids and back, from a model folder's `tokenizer.json`; chat by the model's own template."""

import json
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

from cluster.gateway.chat_template import NO_TEMPLATE, ChatTemplate, read_chat_template, user_says
from cluster.gateway.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from core.errors import ConfigError, InvalidRequest


class Tokenizer:
    """A model's vocabulary. Safe to use from several threads at once.

    `max_token_chars` is the length of the longest token: no token stands for more characters of a text.
    """

    def __init__(self, tokenizer: HFTokenizer, chat_template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._kinds = _decoder_kinds(json.loads(tokenizer.to_str())["decoder"])
        self._bytes: dict[int, bytes | None] = {}
        self.max_token_chars = max(map(len, tokenizer.get_vocab()), default=1)

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int | None = None, chat_template: str | None = None) -> "Tokenizer":
        """Read `tokenizer.json` and the folder's chat template where it has one. Raises ConfigError.

        `vocab_size`: how many tokens the model knows; a tokenizer with ids beyond them belongs to another model.
        `chat_template`: the text of one that stands instead of the folder's.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError([f"{path} is missing: the gateway needs it to turn text into tokens"])
        try:
            tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError([f"{path} cannot be read: {error}"]) from error
        if vocab_size is not None:
            _check_ids(tokenizer.get_vocab(), vocab_size, path)
        return cls(tokenizer, read_chat_template(folder, chat_template))

    @property
    def can_chat(self) -> bool:
        """Whether the model brings a chat template."""
        return self.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects around it."""
        return self._encode(text, add_special_tokens=True)

    def encode_bare(self, text: str) -> list[int]:
        """Token ids of a text that has all its special tokens written out, as a chat template's has."""
        return self._encode(text, add_special_tokens=False)

    def encode_chat(self, message: str) -> list[int]:
        """Token ids of one user message in the model's chat template, up to where the answer begins.

        For templates of one's own: nothing bounds what they take. Raises InvalidRequest without one.
        """
        if self.chat_template is None:
            raise InvalidRequest(NO_TEMPLATE, code="unsupported_parameter")
        return self.encode_bare(self.chat_template.render(user_says(message)))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, as far as one alone can be told; none of a special one."""
        if self._kinds == ["ByteLevel"]:
            return self._token_bytes(token) or b""
        word = self._word(token)
        if word is None:
            return b""
        return bytes([int(word[3:5], 16)]) if self._is_open(token) else self._tokenizer.decode([token]).encode()

    def word(self, token: int) -> str:
        """A token as the vocabulary writes it, special ones too; empty outside the vocabulary."""
        return self._tokenizer.id_to_token(token) or ""

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """As a batch of one: the library keeps the interpreter to itself for the whole of a single text."""
        ids: list[int] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of a whole answer; special tokens have none."""
        return self._tokenizer.decode([token for token in token_ids if self._has_text(token)])

    def detokenizer(self) -> Detokenizer:
        """A decoder for one stream."""
        if self._kinds == ["ByteLevel"]:
            return ByteDetokenizer(self._token_bytes)
        return WindowDetokenizer(self._tokenizer.decode, self._has_text, self._is_open)

    def _has_text(self, token: int) -> bool:
        return self._word(token) is not None

    def _word(self, token: int) -> str | None:
        """A token as the vocabulary writes it; None for a special one and outside the vocabulary."""
        return None if token in self._special_ids else self._tokenizer.id_to_token(token)

    def _is_open(self, token: int) -> bool:
        """Byte fallback turns a whole run of byte tokens into replacement characters where one of them is wrong."""
        return "ByteFallback" in self._kinds and _is_byte_token(self._word(token) or "")

    def _token_bytes(self, token: int) -> bytes | None:
        """Looked up once for each token of the vocabulary: a stream asks for it with every one."""
        if token not in self._bytes:
            self._bytes[token] = self._spelled(token)
        return self._bytes[token]

    def _spelled(self, token: int) -> bytes | None:
        word = self._word(token)
        if word is None:
            return None
        if all(char in _BYTE_OF_CHAR for char in word):
            return bytes(_BYTE_OF_CHAR[char] for char in word)
        return word.encode()


def _check_ids(vocabulary: dict[str, int], vocab_size: int, path: Path) -> None:
    """The model may know more tokens than the tokenizer (padding of its matrices), never fewer."""
    word, highest = max(vocabulary.items(), key=lambda entry: entry[1], default=("", -1))
    if highest >= vocab_size:
        found = f"{path} has token {word!r} with id {highest}, and config.json has vocab_size {vocab_size}"
        raise ConfigError([f"{found}; the model knows ids up to {vocab_size - 1} only: take its own tokenizer"])


def _decoder_kinds(decoder: dict[str, object] | None) -> list[str]:
    if decoder is None:
        return []
    parts = decoder.get("decoders")
    return [str(part["type"]) for part in parts] if isinstance(parts, list) else [str(decoder["type"])]


def _is_byte_token(word: str) -> bool:
    return len(word) == 6 and word.startswith("<0x") and word.endswith(">")


def _byte_of_char() -> dict[str, int]:
    """Byte-level vocabularies write bytes as printable characters: those that are stay, the others follow from 256 on.

    Source: GPT-2, encoder.py, bytes_to_unicode.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
