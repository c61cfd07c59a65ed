"""What the HTTP routes share: the gateway behind them, and who calls."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from starlette.requests import Request
from starlette.responses import Response

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.access import Caller
from cluster.gateway.chat_template import Conversation
from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.gateway import Gateway
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import Model, read_model
from cluster.gateway.openai.front import CALLER, ID, NAMES
from cluster.gateway.openai.json_body import Fields, read_fields
from cluster.gateway.openai.respond import EventAnswer, EventWriter, Headers, WholeAnswer, WholeWriter
from cluster.gateway.openai.sampling import Asked, names_in
from cluster.gateway.openai.token_texts import TokenTexts
from cluster.gateway.openai.tools import CallForm, ToolUse
from cluster.metrics.routes_seen import RequestNodes
from core.ids import RequestId

NOTES = "penstock-notes"
PREFILL_NODE, DECODE_NODE = "x-prefill-node", "x-decode-node"
WHOLE_AT = "penstock.whole_at"

NodesOf: TypeAlias = Callable[[RequestId], RequestNodes]
"""Where a request runs, or ran."""


@dataclass(frozen=True, slots=True)
class Door:
    """One gateway and its cluster, as the routes see them. `nodes_of`: answers tell their nodes; None: they do not."""

    gateway: Gateway
    state: StateProvider
    config: HttpConfig
    nodes_of: NodesOf | None = None

    @property
    def texts(self) -> TokenTexts:
        """What tokens are called."""
        return TokenTexts(self.gateway.tokenizer)

    async def read(self, request: Request, kind: type[Model], names: FieldNames) -> Model:
        """The body of a request; from here on its fields are named as `names` says. Raises RequestError."""
        asked = read_model(kind, await self.fields(request, names))
        if isinstance(asked, Asked):
            name_fields(request, FieldNames(names_in(asked, names.names)))
        return asked

    async def fields(self, request: Request, names: FieldNames) -> Fields:
        """The same as it was sent. The request's times count from when it is whole. Raises RequestError."""
        name_fields(request, names)
        fields = await read_fields(request, self.gateway.limits.max_message_bytes)
        request.scope["state"][WHOLE_AT] = time.monotonic()
        return fields

    async def serve(
        self, request: Request, messages: Sequence[GenerateRequest], respond: Callable[[Calls], Response]
    ) -> Response:
        """Submit the calls of a request; what `respond` makes of them leaves them at its end. Raises PenstockError."""
        calls = await Calls.submit(self.gateway, messages, caller_of(request), request.scope["state"][WHOLE_AT])
        try:
            return respond(calls)
        except BaseException:
            calls.leave()
            raise

    def check_tools(self, use: ToolUse) -> None:
        """Tools of which the model cannot be told are refused, unless its answer must be a call. Raises FieldError."""
        template = self.gateway.tokenizer.chat_template
        if use.form is CallForm.AUTO and template is not None and not template.takes_tools:
            raise FieldError("tools", "this model's chat template takes none", "unsupported_parameter")

    async def encode_chat(self, conversation: Conversation) -> list[int]:
        """The token ids of a conversation. Raises RequestError."""
        return await self.gateway.encode(await self.gateway.chats.render(conversation), is_bare=True)

    def answer(self, calls: Calls, writer: WholeWriter) -> Response:
        """An answer in one body."""
        return WholeAnswer(calls, writer, self._headers(calls))

    def stream(self, calls: Calls, writer: EventWriter) -> Response:
        """An answer as events."""
        return EventAnswer(calls, writer, self._headers(calls), self.config.keep_alive_s)

    def _headers(self, calls: Calls) -> Headers:
        """Made when the answer begins to be written."""
        return lambda: {**notes_of(calls), **nodes_told(calls, self.nodes_of)}


def caller_of(request: Request) -> Caller:
    """Who sent a request; the front has made sure of it."""
    return cast(Caller, request.scope["state"][CALLER])


def id_of(request: Request) -> str:
    """The request's own id: the client's, where it gave one."""
    return str(request.scope["state"][ID])


def name_fields(request: Request, names: FieldNames) -> None:
    """What the gateway's fields are called, should it refuse one."""
    request.scope["state"][NAMES] = names


def notes_of(calls: Calls) -> Mapping[str, str]:
    """What the gateway changed in a request is told beside the answer."""
    notes = dict.fromkeys(note for call in calls.calls for note in call.notes)
    return {NOTES: ", ".join(notes)} if notes else {}


def nodes_told(calls: Calls, nodes_of: NodesOf | None) -> Mapping[str, str]:
    """Where the choices of a request ran, each node once; without what is not known yet."""
    if nodes_of is None:
        return {}
    nodes = [nodes_of(request) for call in calls.calls for request in call.requests]
    told = {PREFILL_NODE: [it.prefill for it in nodes], DECODE_NODE: [it.decode for it in nodes]}
    return {header: ", ".join(dict.fromkeys(filter(None, names))) for header, names in told.items() if any(names)}
