"""Text to token ids and back, from a model folder's `tokenizer.json`; chat by its own template, in a sandbox."""

import json
from pathlib import Path

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HFTokenizer

from cluster.gateway.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from core.errors import ConfigError, InvalidRequest


class Tokenizer:
    """A model's vocabulary. Safe to use from several threads at once.

    `max_token_chars` is the length of the longest token: no token stands for more characters of a text.
    """

    def __init__(self, tokenizer: HFTokenizer, chat_template: "ChatTemplate | None" = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._kinds = _decoder_kinds(json.loads(tokenizer.to_str())["decoder"])
        self.max_token_chars = max(map(len, tokenizer.get_vocab()), default=1)

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int | None = None) -> "Tokenizer":
        """Read `tokenizer.json` and, if there, the template of `tokenizer_config.json`. Raises ConfigError.

        `vocab_size`: how many tokens the model knows; a tokenizer with ids beyond them belongs to another model.
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
        return cls(tokenizer, read_chat_template(folder))

    @property
    def can_chat(self) -> bool:
        """Whether the model brings a chat template."""
        return self._chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects around it."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, message: str) -> list[int]:
        """Token ids of one user message in the model's chat template, up to where the answer begins."""
        if self._chat_template is None:
            raise InvalidRequest("chat: this model has no chat template", code="unsupported_parameter")
        return self._encode(self._chat_template.render(message), add_special_tokens=False)

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


class ChatTemplate:
    """A model's own Jinja template, without access to anything but its arguments."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, message: str) -> str:
        """The prompt of one user message. Raises InvalidRequest where the template refuses it."""
        messages = [{"role": "user", "content": message}]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except TemplateError as error:
            raise InvalidRequest(f"text: the model's chat template refuses it: {str(error)[:64]}") from error


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder; None where it has none. Raises ConfigError where it cannot be read."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        source = config.get("chat_template")
        specials = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return ChatTemplate(source, specials) if isinstance(source, str) else None
    except (ValueError, AttributeError, TemplateError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _content(token: object) -> str:
    """Special tokens are written as strings or as objects."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


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
