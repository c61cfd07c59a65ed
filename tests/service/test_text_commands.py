"""`penstock chat` and `penstock run-batch` against a real service, as people and pipes use them."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest

from cluster.cli import main
from tests.service.running import Running

QUESTION = "What is a penstock?"
GREEDY = ("--temperature", "0", "--max-tokens", "40")


def url_of(pair: Running) -> str:
    assert pair.service.http is not None
    return f"{pair.service.http.url}/v1"


class Piped(io.StringIO):
    """Standard input that is a pipe."""

    def isatty(self) -> bool:
        return False


def test_a_message_from_a_pipe_is_answered_and_no_more(
    pair: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(QUESTION + "\n"))
    assert main(["chat", "--url", url_of(pair), *GREEDY]) == 0
    piped = capsys.readouterr().out
    assert "water" in piped
    assert main(["chat", "--url", url_of(pair), "--quick", QUESTION, *GREEDY]) == 0
    assert capsys.readouterr().out == piped
    monkeypatch.setattr(sys, "stdin", Piped(""))
    assert main(["chat", "--url", url_of(pair)]) == 2
    assert "standard input is empty" in capsys.readouterr().err


def test_a_wrong_field_and_no_server_are_told(pair: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", url_of(pair), "-q", "a", "--temperature", "9"]) == 1
    assert "temperature" in capsys.readouterr().err
    assert main(["chat", "--url", "http://127.0.0.1:9/v1", "-q", "a"]) == 1
    assert "no answer from 127.0.0.1:9" in capsys.readouterr().err
    assert main(["chat", "--url", "ftp://a", "-q", "a"]) == 2


class Terminal:
    """A chat on a terminal of its own. Owns: the process and both ends of its terminal."""

    def __init__(self, *flags: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "cluster.cli", "chat", *flags]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> str:
        """What was shown up to this text, which must come."""
        end = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        """A line, with its end."""
        os.write(self._ours, text.encode() + b"\n")

    def interrupt(self, text: str) -> None:
        """Ctrl-C, and again where this is not shown: one right before the line is waited for may be missed."""
        end = again = time.monotonic()
        end += 30
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if time.monotonic() >= again:
                self.process.send_signal(signal.SIGINT)
                again = time.monotonic() + 2
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 4096).decode(errors="replace")
        self.until(text)

    def close(self) -> int:
        """Ctrl-D at an empty line; the exit status."""
        os.write(self._ours, b"\x04")
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_a_conversation_on_a_terminal_is_remembered_and_forgotten(pair: Running) -> None:
    """As the server sees it: each turn's prompt has all before it, and after a reset it has not."""

    def prompts() -> list[int]:
        return [ledger.num_prompt_tokens for ledger in pair.service.gateway.ledgers]

    with Terminal("--url", url_of(pair), *GREEDY) as talk:
        talk.until("> ")
        talk.type("/help")
        talk.until("/reset")
        talk.until("> ")
        talk.type("/nonsense")
        talk.until("/nonsense is not known")
        talk.until("> ")
        for line in (QUESTION, QUESTION, "/reset", QUESTION, "/system You answer briefly.", QUESTION):
            talk.type(line)
            talk.until("\r\n")
            talk.until("> ")
        first, second, third, fourth = prompts()[-4:]
        assert second > 2 * first > 2 * third - 1 and third == first < fourth
        assert talk.close() == 0
    pair.until_idle(2)


def test_ctrl_c_stops_the_answer_and_not_the_conversation(pair: Running) -> None:
    """The server is told at once: its blocks are free again before the answer could have ended."""
    with Terminal("--url", url_of(pair), "--max-tokens", "1800", "--seed", "1", "--ignore-eos") as talk:
        talk.until("> ")
        talk.type("Tell me a very long story about rivers, dams and turbines, without an end.")
        talk.until("\r\n")
        pair.until(lambda: pair.service.gateway.streams.num_open == 1)
        pair.until(lambda: any(stream.next for stream in pair.service.gateway.streams._streams.values()))
        talk.interrupt("[stopped]")
        talk.until("> ")
        pair.until_idle(2)
        talk.type("/reset")
        talk.until("> ")
        assert talk.close() == 0


def lines(num: int) -> list[dict[str, Any]]:
    body = {"prompt": "Once upon a time", "max_tokens": 8}
    told = [
        {"custom_id": f"a{i}", "method": "POST", "url": "/v1/completions", "body": body | {"seed": i}}
        for i in range(num)
    ]
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 9, "temperature": 0}
    return [*told, {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": asked}]


def write(path: Path, told: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    return str(path)


def read(path: Path) -> dict[str, Any]:
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["custom_id"] for line in told}) == len(told)
    return {line["custom_id"]: line for line in told}


def test_a_file_is_answered_by_a_running_server_and_goes_on_where_it_stopped(
    pair: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path / "in.jsonl", lines(20)), tmp_path / "out.jsonl"
    command = ["run-batch", "-i", source, "-o", str(target), "--url", url_of(pair)]
    assert main(command) == 0
    done = read(target)
    assert len(done) == 21
    assert all(line["response"]["status_code"] == 200 for line in done.values())
    assert "penstock" in done["chat"]["response"]["body"]["choices"][0]["message"]["content"]
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    data = target.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    kept = data[: len(data) // 2].rpartition(b"\n")[0] + b"\n"
    assert main([*command, "--resume"]) == 0
    again = read(target)
    assert target.read_bytes().startswith(kept)
    texts = [{name: it["response"]["body"]["choices"] for name, it in each.items()} for each in (done, again)]
    assert texts[0] == texts[1]
    pair.until_idle(2)


def test_a_refused_line_is_told_and_an_unsound_file_is_not_begun(
    pair: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = lines(2)
    told[0]["body"] = told[0]["body"] | {"temperature": 9}
    target = tmp_path / "out.jsonl"
    assert main(["run-batch", "-i", write(tmp_path / "a", told), "-o", str(target), "--url", url_of(pair)]) == 1
    assert {name: it["response"]["status_code"] for name, it in read(target).items()} == {
        "a0": 400,
        "a1": 200,
        "chat": 200,
    }
    told[1]["custom_id"] = "a0"
    source = write(tmp_path / "b", told)
    assert main(["run-batch", "-i", source, "-o", str(tmp_path / "c"), "--max-concurrent", "0"]) == 2
    said = capsys.readouterr().err
    assert "line 2: custom_id" in said and "--max-concurrent must be at least 1" in said


@pytest.mark.slow
def test_without_a_url_a_cluster_is_started_for_the_run(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    flags = ["--launcher", "local", "--aggregated", "1"]
    assert main(["run-batch", "-i", write(tmp_path / "a", lines(3)), "-o", str(target), *flags]) == 0
    assert len(read(target)) == 4
