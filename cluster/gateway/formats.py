"""The door's checks of what an answer must be: a JSON schema, an expression, a grammar or one of some texts."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from pathlib import Path

from cluster.api.v1.inference_pb2 import SamplingParams as SamplingMessage
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.format_process import FormatProcess, Verdict
from core.request import AnswerFormat, FormatKind

MAX_FORMAT_BYTES = 131_072
MAX_CHOICES = 1024
NUM_VERDICTS = 256
CODE = "invalid_grammar"

_KINDS = {
    "json_schema": FormatKind.JSON_SCHEMA,
    "regex": FormatKind.REGEX,
    "grammar": FormatKind.LARK,
    "choice": FormatKind.LARK,
}


class Formats:
    """Reads the formats of requests, each compiled once before any node is told of it.

    Owns: the process that compiles, and what came of the formats asked for last.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is the model's; None: no answer can have a format."""
        self._process = None if folder is None else FormatProcess(folder)
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._turn = asyncio.Lock()

    async def read(self, message: SamplingMessage) -> AnswerFormat | None:
        """The format that is asked for; None where the answer is free. Raises FieldError or Unavailable."""
        field = _asked_field(message)
        if field is None:
            return None
        text, kind = _text(message, field), _KINDS[field]
        if (num_bytes := len(text.encode())) > MAX_FORMAT_BYTES:
            raise _refusal(field, f"must have at most {MAX_FORMAT_BYTES} bytes, has {num_bytes}")
        verdict = await self._verdict(kind, text, field)
        if verdict.code:
            raise FieldError(f"sampling.{field}", verdict.text, verdict.code)
        return AnswerFormat(kind, verdict.text or text)

    def close(self) -> None:
        """End the process. Twice is fine."""
        if self._process is not None:
            self._process.close()

    async def _verdict(self, kind: FormatKind, text: str, field: str) -> Verdict:
        if self._process is None:
            raise FieldError(f"sampling.{field}", "is not served here; leave it out", "unsupported_parameter")
        key = hashlib.sha256(f"{kind}:{text}".encode()).digest()
        if key not in self._verdicts:
            async with self._turn:  # all who ask for the same one wait for the first of them
                if key not in self._verdicts:
                    self._keep(key, await asyncio.to_thread(self._process.check, kind, text), text)
        self._verdicts.move_to_end(key)
        return self._verdicts[key]

    def _keep(self, key: bytes, verdict: Verdict, text: str) -> None:
        """A text that nodes take as it is comes with each request, and is not kept."""
        self._verdicts[key] = Verdict("", "") if verdict == Verdict("", text) else verdict
        if len(self._verdicts) > NUM_VERDICTS:
            self._verdicts.popitem(last=False)


def _asked_field(message: SamplingMessage) -> str | None:
    fields = [name for name in _KINDS if name != "choice" and message.HasField(name)]
    fields += ["choice"] if message.choice else []
    if len(fields) > 1:
        raise _refusal(fields[1], f"is given beside {fields[0]}; an answer has one format")
    return fields[0] if fields else None


def _text(message: SamplingMessage, field: str) -> str:
    if field != "choice":
        text: str = getattr(message, field)
        return text
    if len(message.choice) > MAX_CHOICES:
        raise _refusal(field, f"at most {MAX_CHOICES}, are {len(message.choice)}")
    if "" in message.choice:
        raise _refusal(f"choice[{list(message.choice).index('')}]", "must not be empty")
    return "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in dict.fromkeys(message.choice))


def _refusal(field: str, problem: str) -> FieldError:
    return FieldError(f"sampling.{field}", problem, CODE)
