"""`penstock chat`: a conversation with a running server on the terminal; from a pipe, one message and its answer."""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from cluster.http_client import HttpClient, client_of, failed
from core.errors import PenstockError, RequestError

PROMPT = "> "
HELP = """/reset          forget the conversation
/system TEXT    say what stands before it, and forget it; without TEXT: nothing
/help           this
/quit           end, as Ctrl-D does; Ctrl-C stops an answer, not the conversation"""


@dataclass(slots=True)
class Conversation:
    """What was said so far. Owns: the messages; the first may be the system's."""

    messages: list[dict[str, str]] = field(default_factory=list)
    system: str = ""

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def say(self, role: str, text: str) -> None:
        """One message more."""
        self.messages.append({"role": role, "content": text})

    def take_back(self) -> None:
        """The last message was not answered: it was not said."""
        self.messages.pop()


class Talk:
    """Sends a conversation, prints the answer as it comes. Owns: the conversation."""

    def __init__(self, client: HttpClient, args: argparse.Namespace) -> None:
        self._client = client
        self._model: str = args.model or served_model(client)
        wanted = {name: getattr(args, name) for name in ("max_tokens", "temperature", "seed", "ignore_eos")}
        self._wanted = {name: value for name, value in wanted.items() if value is not None}
        self.conversation = Conversation(system=args.system_prompt or "")

    @property
    def model(self) -> str:
        """Who answers."""
        return self._model

    def ask(self, text: str) -> None:
        """A message and its answer. Raises PenstockError; then neither was said. Interrupted: what came was said."""
        conversation, said = self.conversation, ""
        conversation.say("user", text)
        asked = {"model": self._model, "messages": conversation.messages, "stream": True} | self._wanted
        try:
            with contextlib.closing(self._client.events("/v1/chat/completions", json.dumps(asked).encode())) as events:
                for event in events:
                    piece = _text_of(event)
                    said += piece
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            conversation.say("assistant", said)
            print(" [stopped]", flush=True)
        except PenstockError:
            conversation.take_back()
            raise
        else:
            conversation.say("assistant", said)
            print(flush=True)


def run_chat(args: argparse.Namespace) -> int:
    """Runs the command; its exit status. Raises PenstockError where a single message fails."""
    talk = Talk(client_of(args.url, args), args)
    if args.quick is not None or not sys.stdin.isatty():
        text = sys.stdin.read() if args.quick is None else args.quick
        if not text.strip():
            raise RequestError("there is no message: standard input is empty")
        talk.ask(text)
        return 0
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # editing and history of the line
    print(f"{talk.model} at {args.url}; /help tells what else there is", file=sys.stderr)
    while (line := _next_line()) is not None:
        if not _is_over(talk, line.strip()):
            continue
        return 0
    return 0


def served_model(client: HttpClient) -> str:
    """The name of the first model that is served. Raises PenstockError."""
    answer = client.get("/v1/models")
    if answer.status != 200:
        raise failed(answer.status, answer.body)
    models = json.loads(answer.body)["data"]
    if not models:
        raise RequestError("this key opens no model", code="model_forbidden")
    return str(models[0]["id"])


def _next_line() -> str | None:
    """What is typed; empty where it was interrupted, None at the end."""
    try:
        return input(PROMPT)
    except KeyboardInterrupt:
        print(flush=True)
        return ""
    except EOFError:
        print(flush=True)
        return None


def _is_over(talk: Talk, line: str) -> bool:
    """Do what a line says; whether it was the last."""
    command, _, rest = line.partition(" ")
    match command:
        case "/quit" | "/exit":
            return True
        case "/reset":
            talk.conversation.reset()
        case "/system":
            talk.conversation.system = rest.strip()
            talk.conversation.reset()
        case "/help":
            print(HELP)
        case "":
            pass
        case _ if command.startswith("/"):
            print(f"{command} is not known; /help tells what is", file=sys.stderr)
        case _:
            try:
                talk.ask(line)
            except PenstockError as error:
                print(f"penstock: error ({error.code}): {error.message}", file=sys.stderr)
    return False


def _text_of(event: Mapping[str, object]) -> str:
    choices = cast(list[dict[str, dict[str, str | None]]], event.get("choices", []))
    return (choices[0]["delta"].get("content") or "") if choices else ""
