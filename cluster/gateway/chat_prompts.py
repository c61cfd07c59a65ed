"""The door's way from a conversation to the text of a prompt."""

import asyncio

from cluster.gateway.chat_template import NO_TEMPLATE, ChatTemplate, Conversation
from cluster.gateway.template_process import TemplateProcess
from core.errors import InvalidRequest


class ChatPrompts:
    """Renders the conversations of requests, one after the other.

    Owns: the process that renders; there is none without a template.
    """

    def __init__(self, template: ChatTemplate | None) -> None:
        self._process = None if template is None else TemplateProcess(template)
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Start the process, so that no request waits for that. Raises Unavailable."""
        if self._process is not None:
            await asyncio.to_thread(self._process.start)

    async def render(self, conversation: Conversation) -> str:
        """A conversation in the model's chat template. Raises InvalidRequest without one or where it refuses."""
        if self._process is None:
            raise InvalidRequest(NO_TEMPLATE, code="unsupported_parameter")
        async with self._turn:  # a thread for each that waits would leave none for others
            return await asyncio.to_thread(self._process.render, conversation)

    def close(self) -> None:
        """End the process. Twice is fine."""
        if self._process is not None:
            self._process.close()
