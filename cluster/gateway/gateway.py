"""The gateway's shell: requests in at the door, tokens out to clients, and the ledger of every request."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.access import Access, Caller, Permit
from cluster.gateway.chat_prompts import ChatPrompts
from cluster.gateway.chat_template import user_says
from cluster.gateway.choices import ClientCall
from cluster.gateway.client_stream import ClientStream
from cluster.gateway.formats import Formats
from cluster.gateway.ledger import CallFacts, RequestLedger
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.sampling_defaults import fill
from cluster.gateway.stops import AnswerText
from cluster.gateway.streams import Delivered, Ended, StreamOutput, Streams
from cluster.gateway.tokenizer import Tokenizer
from cluster.gateway.trace_context import TRACEPARENT
from cluster.gateway.validation import Envelope, check_prompt, check_text, read_envelope, read_sampling_for
from core.commands import Tell
from core.errors import DeadlineExceeded, ErrorInfo, Overloaded, PenstockError, Unavailable
from core.events import GatewayEvent, RequestEnded, Tick
from core.goodput import Outcome, RequestRecord
from core.ids import GatewayId, RequestId
from core.kv import block_keys, tail_key
from core.request import AnswerFormat, Prompt, Request, pack_tokens

LONG_TEXT_CHARS = 4096
"""From here on a text is made into tokens on a thread: below, the hop costs more than the work."""

MANY_TOKENS = 4096
"""From here on tokens are made into text on a thread."""

MAX_TOKENIZING_THREADS = 2
NUM_LEDGERS = 256
RETRY_AFTER_S = 1.0
DEADLINE_SLACK_S = 0.1
SLOW_READER = ErrorInfo("slow_reader", "the client does not read what it asked for")
ABORTED = ErrorInfo("client_closed", "its caller aborted it")


class Gateway:
    """Takes requests, holds their clients, and carries out what `Streams` decides. Lives on one asyncio loop.

    Owns: the open calls, the last ledgers, and the processes beside it, which `close` ends. Whoever runs it passes on
    what is addressed to the gateway (`handle`, also a `Tick` every `timers.tick_s`), with `now` of `time.monotonic`,
    and gives `tell`, which carries messages away. `on_ended` is told of every ended request, `on_turned_away` of what
    was not taken, and whether it named targets.
    `cut_off`: why no cluster can be reached, empty where one can.
    """

    def __init__(
        self,
        model: ServedModel,
        tokenizer: Tokenizer,
        streams: Streams,
        limits: Limits,
        tell: Callable[[Tell], object],
    ) -> None:
        self.model = model
        self.limits = limits
        self.tokenizer = tokenizer
        self.streams = streams
        self.access = Access()
        self.formats = Formats()
        self.chats = ChatPrompts(tokenizer.chat_template)
        self.is_draining = False
        self.cut_off = ""
        self.on_ended: Callable[[RequestLedger], object] = lambda ledger: None
        self.on_turned_away: Callable[[PenstockError, bool], object] = lambda error, has_slo: None
        self._tell = tell
        self._calls: dict[RequestId, ClientCall] = {}
        self._ledgers: deque[RequestLedger] = deque(maxlen=NUM_LEDGERS)
        self._tokenizing = asyncio.Semaphore(MAX_TOKENIZING_THREADS)

    @property
    def ledgers(self) -> tuple[RequestLedger, ...]:
        """The requests that ended last, oldest first."""
        return tuple(self._ledgers)

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        """The same requests as goodput counts them."""
        return tuple(ledger.record for ledger in self._ledgers)

    async def submit(
        self,
        message: GenerateRequest,
        time_left_s: float | None = None,
        caller: Caller | None = None,
        received_at: float | None = None,
    ) -> ClientCall:
        """Check a request, name it, and tell the scheduler; `leave` must follow. `time_left_s` is the call's deadline.

        Each of its choices is a request of its own inside. `caller` None: who needs no key. `received_at`: when it was
        whole, where that was before now: its times count from there. Raises RequestError, AccessDenied, Refused or
        DeadlineExceeded; then no machine was told.
        """
        try:
            now = time.monotonic()
            return await self._submit(message, time_left_s, caller, now if received_at is None else received_at)
        except PenstockError as error:
            self.on_turned_away(error, message.HasField("slo"))
            raise

    async def _submit(
        self, message: GenerateRequest, time_left_s: float | None, caller: Caller | None, received_at: float
    ) -> ClientCall:
        self._check_room(1)
        caller = caller or self.access.caller(None, time.time())
        caller.check_model(self.model.name)
        envelope = self.access.admit(read_envelope(message, self.model, self.limits), caller)
        check_prompt(message, self.model)
        fill(message.sampling, self.model.defaults)
        if time_left_s is not None:
            envelope = replace(envelope, deadline_s=min(envelope.deadline_s, time_left_s))
        permit = caller.enter(envelope.num_choices, time.monotonic())
        try:
            request = self._request(message, await self._token_ids(message), envelope)
            tokens_of_choice = request.prompt.num_tokens + request.sampling.max_tokens
            permit.charge(envelope.num_choices * tokens_of_choice, time.monotonic())
            request = _with_format(request, await self.formats.read(message.sampling))
            self._check_room(envelope.num_choices)
            return self._open(request, envelope, permit, received_at)
        except BaseException:
            permit.close()
            raise

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """Something else than an answer, for as long as it takes: a request of its caller's quota, without tokens.

        Raises QuotaExceeded.
        """
        permit = caller.enter(1, time.monotonic())
        try:
            yield
        finally:
            permit.close()

    def handle(self, event: GatewayEvent, now: float) -> None:
        """Take in what is addressed to the gateway."""
        self.carry(self.streams.handle(event, now), now)
        if isinstance(event, Tick):
            self._drop_stuck(now)

    def carry(self, outputs: Iterable[StreamOutput], now: float) -> None:
        """Carry out what the streams decided: tokens and ends to clients, messages away."""
        for output in outputs:
            match output:
                case Delivered():
                    self._put(output, now)
                case Ended():
                    self._end(output, now)
                case Tell():
                    self._tell(output)

    def leave(self, call: ClientCall) -> None:
        """The client's call is over: read to its end, broken off, or past its deadline."""
        now = time.monotonic()
        expired = now - call.told_at > call.deadline_s - DEADLINE_SLACK_S
        end = self.streams.expire if expired else self.streams.cancel
        self.carry([output for request in call.open_requests for output in end(request, now)], now)
        for request in call.requests:
            del self._calls[request]
        call.permit.close(call.num_used_tokens)

    def abort(self, name: str, caller: Caller) -> int:
        """End the caller's open calls of this name as cancelled; how many there were. Those of others are not seen."""
        now = time.monotonic()
        calls = [call for call in dict.fromkeys(self._calls.values()) if call.is_named(name, caller)]
        return sum(bool(self._cancel(call, now, ABORTED)) for call in calls)

    def lose_cluster(self, why: str) -> None:
        """No scheduler and no node is heard any more: what is open fails, and nothing is taken until `find_cluster`."""
        self.cut_off, now = f"this gateway has lost its cluster: {why}", time.monotonic()
        error = ErrorInfo("worker_lost", self.cut_off, RETRY_AFTER_S)
        for call in dict.fromkeys(self._calls.values()):
            for request in call.open_requests:
                self.handle(RequestEnded(request, Outcome.FAILED, error), now)

    def find_cluster(self, gateway: GatewayId) -> None:
        """A cluster knows us, under this id."""
        self.streams.gateway, self.cut_off = gateway, ""

    def drain(self) -> None:
        """Take no new request; open ones go on."""
        self.is_draining = True

    def close(self) -> None:
        """End the processes beside it; requests that need one are refused from now on. Twice is fine."""
        self.formats.close()
        self.chats.close()

    def _check_room(self, num_choices: int) -> None:
        if self.is_draining:
            raise Unavailable("the server is about to stop and takes no new request", code="draining")
        if self.cut_off:
            raise Unavailable(self.cut_off, retry_after_s=RETRY_AFTER_S)
        num_open, limit = self.streams.num_open, self.limits.max_streams
        if num_open + num_choices > limit:
            message = f"{num_open} of this gateway's {limit} streams are in use, {num_choices} more are needed"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)

    async def _token_ids(self, message: GenerateRequest) -> list[int]:
        if message.WhichOneof("prompt") == "token_ids":
            return list(message.token_ids.ids)
        return await self.token_ids(message.text, message.chat)

    async def token_ids(self, text: str, is_chat: bool) -> list[int]:
        """Token ids of a prompt; of a chat, with the text as one user message. Raises RequestError, Unavailable."""
        if not is_chat:
            return await self.encode(text)
        check_text(text, self.tokenizer.max_token_chars, self.model)
        return await self.encode(await self.chats.render(user_says(text)), is_bare=True)

    async def encode(self, text: str, is_bare: bool = False) -> list[int]:
        """Token ids of a text, a long one's on a thread. `is_bare`: its special tokens are written out already.

        Raises FieldError where it cannot fit the context however it is cut.
        """
        encode = self.tokenizer.encode_bare if is_bare else self.tokenizer.encode
        check_text(text, self.tokenizer.max_token_chars, self.model)
        if len(text) < LONG_TEXT_CHARS:
            return encode(text)
        async with self._tokenizing:
            return await asyncio.to_thread(encode, text)

    async def decode(self, token_ids: list[int]) -> str:
        """The text of tokens, of many on a thread."""
        if len(token_ids) < MANY_TOKENS:
            return self.tokenizer.decode(token_ids)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids)

    def _request(self, message: GenerateRequest, token_ids: list[int], envelope: Envelope) -> Request:
        sampling = read_sampling_for(message, len(token_ids), self.model, self.limits)
        packed, keyed_by = pack_tokens(token_ids), (self.model.block_size, envelope.cache_scope)
        return Request(
            id=_mint(self.streams.gateway),
            prompt=Prompt(len(token_ids), block_keys(packed, *keyed_by), tail_key(packed, *keyed_by)),
            token_ids=packed,
            sampling=sampling,
            slo=envelope.slo,
            priority=envelope.priority,
            tenant=envelope.tenant,
        )

    def _open(self, request: Request, envelope: Envelope, permit: Permit, received_at: float) -> ClientCall:
        now = time.monotonic()
        left_s = envelope.deadline_s - (now - received_at)
        if left_s <= 0:
            raise DeadlineExceeded(f"the request's {envelope.deadline_s:g} s were over before it was queued")
        requests = self._choices(replace(request, deadline_s=left_s), envelope.num_choices)
        facts = CallFacts(envelope.slo_class, envelope.client_id, TRACEPARENT.get())
        clients = [ClientStream(choice, received_at, now, self._text(choice, envelope), facts) for choice in requests]
        call = ClientCall(envelope, clients, permit)
        self._calls |= dict.fromkeys(call.requests, call)
        self.carry([output for choice in requests for output in self.streams.open(choice, now)], now)
        return call

    def _choices(self, request: Request, num_choices: int) -> list[Request]:
        """The requests of one call: equal but for name and choice. The prompt's logprobs are told once, by choice 0."""
        choices = [request]
        for choice in range(1, num_choices):
            sampling = replace(request.sampling, choice=choice, prompt_logprobs=None)
            choices.append(replace(request, id=_mint(self.streams.gateway), sampling=sampling))
        return choices

    def _text(self, request: Request, envelope: Envelope) -> AnswerText:
        return AnswerText(self.tokenizer.detokenizer(), envelope.stop, request.sampling.min_tokens)

    def _put(self, delivered: Delivered, now: float) -> None:
        call = self._calls[delivered.request]
        call.put(delivered, now)
        if call.is_stopped(delivered.request):
            self.carry(self.streams.stop(delivered.request, now), now)
        if call.pending_bytes > self.limits.max_pending_bytes:
            self._give_up(call, now)

    def _end(self, ended: Ended, now: float) -> None:
        """A choice has ended; one that did not finish takes the others with it."""
        call = self._calls[ended.request]
        ledger = call.end(ended, now)
        self._ledgers.append(ledger)
        self.on_ended(ledger)
        if ended.error is not None:
            self._cancel(call, now, ErrorInfo(ended.error.code, "another choice of the same call ended so"))

    def _cancel(self, call: ClientCall, now: float, error: ErrorInfo) -> list[StreamOutput]:
        """End what is open of a call, all of it before any end is carried out; what was done."""
        outputs = [output for request in call.open_requests for output in self.streams.cancel(request, now, error)]
        self.carry(outputs, now)
        return outputs

    def _drop_stuck(self, now: float) -> None:
        """Give up clients that take no byte: of open streams, and of ended ones whose rest is not read."""
        for call in dict.fromkeys(self._calls.values()):
            if call.writing_since is None or now - call.writing_since <= self.limits.max_stall_s:
                continue
            if call.open_requests:
                self._give_up(call, now)
            elif call.on_broken is not None:
                call.on_broken()

    def _give_up(self, call: ClientCall, now: float) -> None:
        """A client does not read: its streams end CANCELLED, unless all have ended already."""
        if self._cancel(call, now, SLOW_READER) and call.on_broken is not None:
            call.on_broken()


def _with_format(request: Request, wanted: AnswerFormat | None) -> Request:
    return request if wanted is None else replace(request, sampling=replace(request.sampling, format=wanted))


def _mint(gateway: GatewayId) -> RequestId:
    """A new name, which no other gateway gives: it begins with what sets this one's id apart from theirs."""
    return RequestId(f"{gateway.rpartition('-')[2]}{secrets.token_hex(12)}")
