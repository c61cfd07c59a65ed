"""Batches over crashes and windows: no line answered twice, none lost, whatever was half written."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batches.asking import asked_to_its_end
from cluster.batches.batches import Batches, Wanted
from cluster.batches.config import BatchConfig
from cluster.batches.input_lines import InputLine
from cluster.batches.records import BatchRecord, BatchStatus
from cluster.batches.result_log import LineAnswer, ResultLog
from core.errors import ConfigError
from tests.openai.batching import CHAT, chat_line, jsonl

OK = LineAnswer(200, "r", b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}')
NUM_LINES = 40
Asked = Callable[[InputLine], Awaitable[LineAnswer]]


class Disk:
    """A batch folder that one server after the other has; what is asked is counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = Counter[int]()
        self.now = 1_000_000.0

    def server(self, answer: Asked) -> Batches:
        """The next one, which answers so."""

        async def ask(owner: str, line: InputLine) -> LineAnswer:
            assert owner == "key"
            self.asked[line.number] += 1
            return await answer(line)

        batches = Batches(BatchConfig(self.folder, max_concurrent=4), ask, lambda: self.now)
        batches.open()
        return batches

    def begin(self, batches: Batches) -> BatchRecord:
        """A batch of `NUM_LINES`."""
        upload = batches.files.new_upload("key")
        upload.write_bytes(jsonl(map(chat_line, range(NUM_LINES))))
        file = batches.files.take(upload, "key", "in.jsonl")
        return batches.create(Wanted("key", CHAT, file.id, "24h"))

    def told(self, record: BatchRecord) -> list[str]:
        """The custom ids of both result files."""
        lines = list[str]()
        for name in (record.output_file, record.error_file):
            path = self.folder / "files" / f"{name}.jsonl"
            if path.exists():
                lines += [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]
        return lines


ALL = sorted(f"line-{number}" for number in range(NUM_LINES))


async def over(batches: Batches, record: BatchRecord) -> BatchRecord:
    async with asyncio.timeout(20):
        while not (found := batches.find(record.id, "key")).is_over:
            await asyncio.sleep(0.005)
    return found


async def usual(line: InputLine) -> LineAnswer:
    await asyncio.sleep(0)
    return OK


def until_line(last: int) -> Asked:
    """Answers up to a line, then never."""

    async def answer(line: InputLine) -> LineAnswer:
        if line.number > last:
            await asyncio.Event().wait()
        return OK

    return answer


@pytest.mark.parametrize("last", [0, 1, 17, 39, 40])
def test_a_batch_goes_on_after_a_restart_and_answers_every_line_once(tmp_path: Path, last: int) -> None:
    async def scenario() -> None:
        disk = Disk(tmp_path)
        first = disk.server(until_line(last))
        record = disk.begin(first)
        while sum(disk.asked.values()) < min(last + 4, NUM_LINES):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        await first.stop()
        second = disk.server(usual)
        second.start()
        done = await over(second, record)
        assert (done.status, done.num_lines, done.num_answered) == (BatchStatus.COMPLETED, NUM_LINES, NUM_LINES)
        assert done.usage is not None and done.usage.output_tokens == 2 * NUM_LINES
        assert sorted(disk.told(done)) == ALL
        assert all(disk.asked[number] == 1 for number in range(1, last + 1))
        await second.stop()

    asyncio.run(scenario())


def test_several_crashes_that_cut_the_last_line_lose_and_repeat_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Disk(tmp_path)
        server = disk.server(until_line(5))
        record = disk.begin(server)
        for last in (5, 10, 20, 30):
            async with asyncio.timeout(20):
                while server.find(record.id, "key").num_answered < last:
                    await asyncio.sleep(0.005)
            await server.stop()
            path = tmp_path / "files" / f"{record.output_file}.jsonl"
            with path.open("ab") as file:
                file.write(b'{"id":"batch_req_' + b"\0" * (last % 3) + b"x" * last)
            server = disk.server(until_line(last + 10 if last > 5 else 10))
            server.start()
        await server.stop()
        server = disk.server(usual)
        server.start()
        assert sorted(disk.told(await over(server, record))) == ALL
        await server.stop()

    asyncio.run(scenario())


def test_lines_that_a_window_leaves_are_told_as_expired(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Disk(tmp_path)
        first = disk.server(until_line(12))
        record = disk.begin(first)
        while disk.asked[16] == 0:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        await first.stop()
        disk.now += 24 * 3600 + 1
        second = disk.server(usual)
        second.start()
        done = await over(second, record)
        assert (done.status, done.num_answered, done.num_failed) == (BatchStatus.EXPIRED, 12, NUM_LINES - 12)
        assert sorted(disk.told(done)) == ALL
        errors = (tmp_path / "files" / f"{done.error_file}.jsonl").read_text()
        assert errors.count('"batch_expired"') == NUM_LINES - 12
        await second.stop()

    asyncio.run(scenario())


def test_a_window_that_ends_while_lines_are_at_work_breaks_them_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Disk(tmp_path)
        server = disk.server(until_line(7))
        disk.now = 0.0
        record = disk.begin(server)
        disk.now = record.expires_at - 0.2
        done = await over(server, record)
        assert (done.status, done.num_answered) == (BatchStatus.EXPIRED, 7)
        assert sorted(disk.told(done)) == ALL
        await server.stop()

    asyncio.run(scenario())


def test_two_servers_cannot_have_one_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Disk(tmp_path).server(usual)
        with pytest.raises(ConfigError, match="in use by another server"):
            Disk(tmp_path).server(usual)
        await first.stop()
        await Disk(tmp_path).server(usual).stop()

    asyncio.run(scenario())


def test_what_a_crash_left_of_uploads_is_swept_away_and_a_strange_record_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Disk(tmp_path)
        server = disk.server(usual)
        record = await over(server, disk.begin(server))
        await server.stop()
        for name in ("x.part", "file-stray.jsonl", "y.new"):
            (tmp_path / "files" / name).write_bytes(b"x")
        await disk.server(usual).stop()
        names = {path.stem for path in (tmp_path / "files").iterdir()}
        assert names == {record.input_file, record.output_file}
        (tmp_path / "batches" / "batch_x.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"batch_x\.json is no batch's record"):
            disk.server(usual)

    asyncio.run(scenario())


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), unique=True, max_size=8), st.integers(0, 10_000), st.binary(max_size=9))
def test_a_log_cut_anywhere_has_whole_lines_only(numbers: list[int], cut: int, garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, ends = Path(folder) / "log.jsonl", [0]
        log = ResultLog(path, "b")
        for number in numbers:
            log.add(InputLine(number, f"ünï\n{number}", CHAT, b"{}"), OK)
            ends.append(path.stat().st_size)
        log.close()
        cut %= ends[-1] + 1
        path.write_bytes(path.read_bytes()[:cut] + garbage.replace(b"\n", b""))
        again = ResultLog(path, "b")
        num_whole = sum(end <= cut for end in ends) - 1
        assert again.answered == set(numbers[:num_whole])
        assert path.stat().st_size == ends[num_whole]
        again.close()


def test_a_deadline_counts_only_where_the_line_names_it() -> None:
    answers = [LineAnswer(504, "r", b"{}", "deadline_exceeded", is_hopeless=True), OK]

    async def ask(line: InputLine) -> LineAnswer:
        return answers[0] if b"deadline_ms" in line.body else answers.pop(0)

    async def scenario() -> None:
        slots = asyncio.Semaphore(1)
        own = await asked_to_its_end(ask, InputLine(1, "a", CHAT, b'{"deadline_ms": 100}'), slots)
        assert own.code == "deadline_exceeded"
        assert await asked_to_its_end(ask, InputLine(1, "a", CHAT, b"{}"), slots) == OK

    asyncio.run(scenario())
