"""Chat templates: rendered as transformers renders them, and unable to reach or to break anything."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from cluster.gateway.chat_template import ChatTemplate, Conversation, chosen_template, read_chat_template
from core.errors import ConfigError, InvalidRequest

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": ""}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "<b> & 'ü'", "parameters": {"type": "object"}},
}
MESSAGES = (
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "so?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
        ],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    {"role": "user", "content": "and tomorrow?"},
)
TEMPLATES = {
    "header ids": (
        "{{- bos_token }}\n{%- for message in messages %}\n"
        "    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"
    ),
    "tools as JSON": (
        "{%- if tools %}<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n{% endif %}"
        "{% for message in messages %}{% if message.tool_calls %}{% for call in message.tool_calls %}"
        '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
        "\n</tool_call>{% endfor %}{% else %}<|im|>{{ message.role }}\n{{ message.content }}{% endif %}{% endfor %}"
    ),
    "loop controls": (
        "{% for message in messages %}{% if message.role == 'tool' %}{% continue %}{% endif %}"
        "{% if loop.index > 4 %}{% break %}{% endif %}{{ loop.index }}{{ message.content }}{% endfor %}{{ eos_token }}"
    ),
    "marks of a trainer": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}!"
        "{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
    "namespace and indent": (
        "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{% endfor %}"
        "{{ ns.count }}{{ tools[0] | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true) }}"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_template_renders_as_transformers_renders_it(name: str, is_open: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (theirs,), _ = render_jinja_template(
        [list(MESSAGES)], tools=[TOOL], chat_template=TEMPLATES[name], add_generation_prompt=is_open, **SPECIALS
    )
    ours = ChatTemplate(TEMPLATES[name], SPECIALS).render(Conversation(MESSAGES, (TOOL,), is_open))
    assert ours == theirs


def test_only_a_template_that_reads_tools_takes_them() -> None:
    taking = {name for name, source in TEMPLATES.items() if ChatTemplate(source, SPECIALS).takes_tools}
    assert taking == {"tools as JSON", "namespace and indent"}


def test_the_date_is_todays() -> None:
    told = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}).render(Conversation(()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told)
    assert abs((datetime.now() - datetime.fromisoformat(told)).days) <= 1


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages[9].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_a_template_must_not_or_cannot_do_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate(source, {}).render(Conversation(({"role": "user", "content": "x"},)))


def test_a_file_of_its_own_stands_above_the_config_and_a_list_has_a_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ eos_token }}yes"}]
    config = {"chat_template": named, "eos_token": {"content": "<e>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = read_chat_template(tmp_path)
    assert read is not None and read.render(Conversation(())) == "<e>yes"
    (tmp_path / "chat_template.jinja").write_text("own{{ eos_token }}")
    read = read_chat_template(tmp_path)
    assert read is not None and read.render(Conversation(())) == "own<e>"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match="chat_template"):
        read_chat_template(tmp_path)


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_chat_template(tmp_path) is None


def test_a_chosen_template_stands_above_the_models_own_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own", "eos_token": "<e>"}))
    (tmp_path / "chat_template.jinja").write_text("own, too")
    path = tmp_path / "other.jinja"
    path.write_text("{{ eos_token }}chosen")
    read = read_chat_template(tmp_path, chosen_template(path))
    assert read is not None
    assert read.render(Conversation(())) == "<e>chosen"


@pytest.mark.parametrize("content", [b"{% if %}", b"\xff", None])
def test_a_chosen_template_that_cannot_be_is_named_by_its_flag(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--chat-template"):
        chosen_template(path)
