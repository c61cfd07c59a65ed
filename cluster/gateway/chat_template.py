"""A model's own chat template: messages to the text of a prompt, in Jinja's sandbox."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.errors import ConfigError, InvalidRequest

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

NO_TEMPLATE = "messages: this model has no chat template"

JsonObject = Mapping[str, object]
"""What templates are written for: messages and tools as JSON has them."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template makes a prompt of. `is_open`: it ends where the model's answer begins."""

    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] = ()
    is_open: bool = True


def user_says(text: str) -> Conversation:
    """One user message."""
    return Conversation(({"role": "user", "content": text},))


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; a prompt is the same without the marks."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A model's own Jinja template, without access to anything but its arguments and today's date.

    `source` is its text, `special_tokens` its arguments beside a conversation; `takes_tools`: whether it reads them.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        extensions = [loopcontrols, _Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self.source = source
        self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        self._template = environment.from_string(source)
        self.special_tokens = dict(special_tokens)

    def render(self, conversation: Conversation) -> str:
        """The text of the prompt, without any bound on what it takes. Raises InvalidRequest where it is refused."""
        try:
            return self._template.render(
                messages=conversation.messages,
                tools=conversation.tools or None,
                add_generation_prompt=conversation.is_open,
                **self.special_tokens,
            )
        except TemplateError as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {str(error)[:64]}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            why = type(error).__name__
            raise InvalidRequest(f"messages: the model's chat template cannot take them ({why})") from error


def chosen_template(path: Path) -> str:
    """The text of a template that somebody chose instead of the model's own. Raises ConfigError."""
    try:
        source = path.read_text(encoding="utf-8")
        ChatTemplate(source, {})
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise ConfigError([f"--chat-template {path} cannot be read: {error}"]) from error
    return source


def read_chat_template(folder: Path, chosen: str | None = None) -> ChatTemplate | None:
    """The template of a model folder, a file of its own before that of `tokenizer_config.json`; None without one.

    `chosen` stands instead of both. Raises ConfigError where it cannot be read.
    """
    path = folder / "tokenizer_config.json"
    own = folder / "chat_template.jinja"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        specials = {name: _content(config.get(name)) for name in SPECIAL_TOKENS}
        source = _default(config.get("chat_template"))
        if chosen is not None:
            source = chosen
        elif own.is_file():
            path = own
            source = own.read_text(encoding="utf-8")
        return ChatTemplate(source, specials) if source is not None else None
    except (ValueError, AttributeError, TemplateError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _default(templates: object) -> str | None:
    """A config has one template, or a list of named ones, of which `default` is for chats."""
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None


def _content(token: object) -> str:
    """Special tokens are written as strings or as objects."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML, which no model has been trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
