"""A cluster without nodes behind a real gateway and a real gRPC server, for one asyncio loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from cluster.gateway.access import Access
from cluster.gateway.client import AsyncClient
from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.formats import Formats
from cluster.gateway.gateway import Gateway
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.streams import Streams
from cluster.gateway.tokenizer import ChatTemplate, Tokenizer
from core.commands import Tell
from core.errors import ErrorInfo
from core.events import (
    AttemptLost,
    FinishReason,
    GatewayEvent,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    RequestResumed,
    StreamEnded,
    TokensEmitted,
)
from core.goodput import Outcome
from core.ids import SCHEDULER, AttemptId, GatewayId, NodeId, RequestId, attempt_id
from core.mix import mix_of
from core.request import Request, num_packed, unpack_tokens
from core.stats import BlockCounts, NodeStats, Timing
from core.step import TokenLogprobs
from core.transfer import MovedKV, PeerLink, TransferReport
from engine.embedded import prompts

VOCAB_SIZE = 300
VOCABULARY = Path(prompts.__file__).parent
"""A folder with a tokenizer that formats are compiled for: whether they can be does not depend on whose it is."""

MAX_MODEL_LEN = 512
TIMING = Timing(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, num_cached_tokens=2)
CHAT_TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}{{ eos_token }}"
STATS = NodeStats(3, 1, 2, 0, 4, BlockCounts(36, 1, 2, 3, 4, 5, 6, 7, 8), 0, 99, 0.01, 0)

TRANSFERS = TransferReport(
    (PeerLink(NodeId("d@1"), "shm", "shm (as asked)"),), (("fallback", 2),), (MovedKV("shm", 7, 1234),)
)


def tiny_tokenizer(vocab_size: int = VOCAB_SIZE) -> HFTokenizer:
    """Byte-level pairs, every byte in the vocabulary, one special token."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog " * 3, "für 漢字 😀😀 für 漢字"], trainer
    )
    return tokenizer


def score(choice: int, place: int, num_top: int) -> TokenLogprobs:
    """What the fake nodes tell of a token; those of the prompt have choice -1."""
    logprob = -(choice + 2) - place / 1024
    return TokenLogprobs(logprob, place % 9 + 1, tuple(range(num_top)), tuple(logprob - i for i in range(num_top)))


class FakeCluster:
    """Answers like scheduler and nodes: token i of choice c is token i + c of the prompt, round and round.

    Scores, where asked for, are those of `score`. Catches: streams, choices or scores mixed up, tokens lost, repeated
    or reordered on the way to the client, requests the gateway forgets to end or to cancel. Cannot catch what real
    scheduling or KV would do. `answer` may be replaced by a test.
    """

    def __init__(self) -> None:
        self.gateway: Gateway
        self.answer: Callable[[Request], Awaitable[None]] = self.echo
        self.state = ClusterState((node("p@1", "prefill"), node("d@2", "decode")), (("retries", 5),))
        self.arrived: list[Request] = []
        self.told_ends: dict[RequestId, Outcome] = {}
        self.resumed: dict[RequestId, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scored: set[AttemptId] = set()

    def tell(self, tell: Tell) -> None:
        """What the gateway says to the scheduler."""
        assert tell.to == SCHEDULER
        match tell.event:
            case RequestArrived(request):
                self.arrived.append(request)
                task = asyncio.ensure_future(_started(self.answer, request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case StreamEnded(name, outcome):
                self._note_end(name, outcome)
            case RequestCancelled(name):
                self._note_end(name, Outcome.CANCELLED)
            case RequestResumed(name, log):
                self.resumed[name] = log

    def give(self, event: GatewayEvent) -> None:
        """An event for the gateway, now."""
        self.gateway.handle(event, time.monotonic())

    def emit(self, request: Request, first: int, count: int, number: int = 1) -> None:
        """Tokens of one step, with the finish where `max_tokens` are reached."""
        prompt, asked = unpack_tokens(request.token_ids), request.sampling
        places = range(first, min(first + count, asked.max_tokens))
        ends = [place == asked.max_tokens - 1 for place in places]
        attempt = attempt_id(request.id, number)
        self.give(
            TokensEmitted(
                (attempt,) * len(places),
                tuple(places),
                tuple(prompt[(place + asked.choice) % len(prompt)] for place in places),
                tuple(FinishReason.LENGTH if end else None for end in ends),
                tuple(replace(TIMING, num_cached_tokens=2 + asked.choice) if end else None for end in ends),
                () if asked.logprobs is None else tuple(score(asked.choice, place, asked.logprobs) for place in places),
                self._prompt_logprobs(request, attempt, len(places)),
            )
        )

    def _prompt_logprobs(
        self, request: Request, attempt: AttemptId, count: int
    ) -> tuple[tuple[TokenLogprobs, ...] | None, ...]:
        """Beside the first token of every attempt."""
        num_top = request.sampling.prompt_logprobs
        if num_top is None or count == 0 or attempt in self._scored:
            return ()
        self._scored.add(attempt)
        scores = tuple(score(-1, place, num_top) for place in range(1, request.prompt.num_tokens))
        return (scores, *(None,) * (count - 1))

    async def echo(self, request: Request) -> None:
        """The whole answer, a token at a time."""
        for place in range(request.sampling.max_tokens):
            await asyncio.sleep(0)
            if request.id in self.told_ends:
                return
            self.emit(request, place, 1)

    def echo_short_of(self, max_tokens: int) -> Callable[[Request], Awaitable[None]]:
        """Echo, but answers of `max_tokens` never get their last token."""

        async def answer(request: Request) -> None:
            for place in range(request.sampling.max_tokens - (request.sampling.max_tokens == max_tokens)):
                await asyncio.sleep(0)
                if request.id not in self.told_ends:
                    self.emit(request, place, 1)

        return answer

    async def silence(self, request: Request) -> None:
        """Never an answer."""

    def failing(self, outcome: Outcome, error: ErrorInfo, after: int = 0) -> Callable[[Request], Awaitable[None]]:
        """`after` tokens, then the scheduler gives the request up."""

        async def answer(request: Request) -> None:
            self.emit(request, 0, after)
            self.give(RequestEnded(request.id, outcome, error))

        return answer

    def losing(self, after: int) -> Callable[[Request], Awaitable[None]]:
        """A node lost after `after` tokens, some of them still on their way; the next attempt goes on from the log."""

        async def answer(request: Request) -> None:
            self.emit(request, 0, after)
            self.give(AttemptLost(attempt_id(request.id, 1)))
            self.emit(request, after, 5, number=1)
            known = num_packed(self.resumed[request.id])
            self.emit(request, known, request.sampling.max_tokens, number=2)

        return answer

    async def close(self) -> None:
        """Wait for the answers that are still being given."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note_end(self, name: RequestId, outcome: Outcome) -> None:
        assert name not in self.told_ends, "a request ended twice"
        self.told_ends[name] = outcome


def node(name: str, role: str) -> NodeState:
    """A node that serves `role`."""
    return NodeState(NodeId(name), 4711, "actor", mix_of(role, 512, 16, 3), STATS, 1234, 7, TRANSFERS)


@dataclass(frozen=True, slots=True)
class Place:
    """Everything a scenario needs."""

    gateway: Gateway
    cluster: FakeCluster
    server: GrpcServer
    client: AsyncClient
    tokenizer: Tokenizer


def serve(
    scenario: Callable[[Place], Awaitable[None]],
    limits: Limits = Limits(),  # noqa: B008 - frozen
    max_model_len: int = MAX_MODEL_LEN,
    access: AccessSettings = AccessSettings(),  # noqa: B008 - frozen
    seconds: float = 60,
) -> None:
    """Run a scenario against a new server; at its end nothing is open any more."""
    asyncio.run(asyncio.wait_for(_serve(scenario, limits, max_model_len, access), seconds))


async def _serve(
    scenario: Callable[[Place], Awaitable[None]], limits: Limits, max_model_len: int, access: AccessSettings
) -> None:
    cluster = FakeCluster()
    tokenizer = Tokenizer(tiny_tokenizer(), ChatTemplate(CHAT_TEMPLATE, {"eos_token": "<eos>"}))
    model = ServedModel("tiny", VOCAB_SIZE, max_model_len, 16)
    gateway = Gateway(model, tokenizer, Streams(GatewayId("gateway")), limits, cluster.tell)
    cluster.gateway = gateway
    gateway.access = Access(access)
    gateway.formats = Formats(VOCABULARY)
    server = GrpcServer(gateway, lambda: cluster.state)
    await server.start()
    try:
        async with AsyncClient(server.address) as client:
            await scenario(Place(gateway, cluster, server, client, tokenizer))
        await until(gateway.streams.is_idle)
    finally:
        await cluster.close()
        await server.stop()
        gateway.close()
    gateway.streams.check()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def _started(answer: Callable[[Request], Awaitable[None]], request: Request) -> None:
    await answer(request)
