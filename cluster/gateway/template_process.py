"""The process in which a model's chat template is rendered: one that runs for ever, or blows up, takes nobody with it.

Its first frame is JSON, `[source, special tokens]`; then `[messages, tools, is_open]` to it, `[problem, text]` back.
"""

import json
import logging

from cluster.gateway.chat_template import ChatTemplate, Conversation
from cluster.gateway.confined import MAX_CPU_S, Confined, Died, Program, answer_frames, first_frame
from core.errors import InvalidRequest

MAX_MEMORY_BYTES = 512 << 20
MAX_PROMPT_BYTES = 16 << 20
"""Twice what a request's body may have."""

FIELD = "messages"
_log = logging.getLogger(__name__)


class TemplateProcess:
    """Renders one conversation at a time. Safe to use from several threads. Owns: the process."""

    def __init__(self, template: ChatTemplate) -> None:
        first = json.dumps([template.source, template.special_tokens]).encode()
        self._confined = Confined(Program("cluster.gateway.template_process", "renders chats", first=first))

    def start(self) -> None:
        """Start it before the first conversation. Raises Unavailable."""
        self._confined.start()

    def render(self, conversation: Conversation) -> str:
        """Blocks until the text is there. Raises InvalidRequest where it cannot be, Unavailable without an answer."""
        told = self._confined.ask(_question(conversation))
        if isinstance(told, Died):
            _log.warning("a conversation ended the process that renders: %s", _cause(told))
            raise InvalidRequest(f"{FIELD}: {_cause(told)}")
        problem, text = json.loads(told)
        if problem:
            raise InvalidRequest(problem)
        return str(text)

    def close(self) -> None:
        """End the process; nothing is rendered afterwards."""
        self._confined.close()


def _question(conversation: Conversation) -> bytes:
    try:
        return json.dumps([conversation.messages, conversation.tools, conversation.is_open]).encode()
    except RecursionError as error:
        raise InvalidRequest(f"{FIELD}: the arguments of a tool call are nested too deeply") from error


def _cause(death: Died) -> str:
    if death.is_out_of_time:
        return f"the model's chat template takes more than {MAX_CPU_S:g} s of processor time for them"
    return "the model's chat template takes too much memory for them"


# ── inside the process ───────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Answer until nobody asks any more."""
    source, special_tokens = json.loads(first_frame())
    template = ChatTemplate(source, special_tokens)
    answer_frames(lambda frame: json.dumps(_answer(template, frame)).encode(), MAX_MEMORY_BYTES)


def _answer(template: ChatTemplate, frame: bytes) -> list[str]:
    try:
        messages, tools, is_open = json.loads(frame)
        text = template.render(Conversation(tuple(messages), tuple(tools), is_open))
        num_bytes = len(text.encode(errors="surrogatepass"))
    except InvalidRequest as error:
        return [error.message, ""]
    except MemoryError:
        return [f"{FIELD}: the model's chat template takes too much memory for them", ""]
    except Exception as error:
        return [f"{FIELD}: the model's chat template cannot take them ({type(error).__name__})", ""]
    if num_bytes > MAX_PROMPT_BYTES:
        return [f"{FIELD}: the model's chat template makes {num_bytes} bytes of them, more than {MAX_PROMPT_BYTES}", ""]
    return ["", text]


if __name__ == "__main__":
    main()
