"""`penstock run-batch`: every request of a file answered into another, by a running server or one for this run."""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.batches.asking import asked_to_its_end
from cluster.batches.input_lines import InputLine, check_input, raw_lines, read_line
from cluster.batches.result_log import LineAnswer, ResultLog
from cluster.console import ERR, OUT, StartProgress
from cluster.flags import service_config
from cluster.gateway.openai.config import HttpConfig
from cluster.http_client import HttpAnswer, HttpClient, client_of
from cluster.service import Service
from core.errors import ConfigError, Unavailable

MS_PER_S = 1000.0
SYNC_LINES = 100
"""After so many answers, and at the end, all are put on disk: what a power cut takes is asked again."""


@dataclass(slots=True)
class Told:
    """What became of the lines so far."""

    num_answered: int = 0
    num_failed: int = 0

    @property
    def num_lines(self) -> int:
        """All of them."""
        return self.num_answered + self.num_failed


def run_batch(args: argparse.Namespace) -> int:
    """Runs the command; 1 where a line was refused. Raises ConfigError before anything is asked, Unavailable."""
    source, target = Path(args.input_file).expanduser(), Path(args.output_file).expanduser()
    num_lines = _checked(args, source, target)
    if args.overwrite:
        target.unlink(missing_ok=True)
    with contextlib.closing(ResultLog(target)) as log:
        before = len(log.answered)
        told = asyncio.run(_run(args, source, log))
        log.sync()
    resumed = f", {before} were there" if before else ""
    OUT.print(f"{num_lines} requests: {told.num_answered} answered, {told.num_failed} refused{resumed}; {target}")
    return 1 if told.num_failed else 0


def _checked(args: argparse.Namespace, source: Path, target: Path) -> int:
    """How many requests there are. Raises ConfigError with every problem."""
    problems: list[str] = []
    if args.max_concurrent < 1:
        problems.append(f"--max-concurrent must be at least 1, not {args.max_concurrent}")
    if not target.absolute().parent.is_dir():
        problems.append(f"-o {target}: there is no such folder")
    elif target.exists() and target.stat().st_size and not (args.resume or args.overwrite):
        problems.append(f"-o {target} is there already: --resume goes on behind its answers, --overwrite begins anew")
    try:
        checked = check_input(source)
    except OSError as error:
        raise ConfigError([*problems, f"-i {source} cannot be read: {error.strerror}"]) from error
    for problem in checked.problems:
        line = "" if problem.number is None else f", line {problem.number}"
        problems.append(f"{source}{line}: {problem.message}")
    if problems:
        raise ConfigError(problems)
    return checked.num_lines


async def _run(args: argparse.Namespace, source: Path, log: ResultLog) -> Told:
    async with _server(args) as client:
        return await _answer_all(client, source, log, args.max_concurrent)


@contextlib.asynccontextmanager
async def _server(args: argparse.Namespace) -> AsyncGenerator[HttpClient, None]:
    """The running server, or one for the length of the block."""
    if args.url is not None:
        yield client_of(args.url, args)
        return
    args.host, args.grpc_port = "127.0.0.1", 0
    config = replace(service_config(args), http=HttpConfig(port=0))
    with StartProgress() as progress:
        service = Service(config, progress.report)
        await service.start()
    assert service.http is not None, "a service without HTTP"
    try:
        yield client_of(service.http.url, args)
    finally:
        await service.stop()


async def _answer_all(client: HttpClient, source: Path, log: ResultLog, max_concurrent: int) -> Told:
    told, slots = Told(), asyncio.Semaphore(max_concurrent)
    places = asyncio.Semaphore(max_concurrent)
    loop = asyncio.get_running_loop()

    async def ask(line: InputLine) -> LineAnswer:
        try:
            return _line_answer(await loop.run_in_executor(pool, client.post, line.url, line.body))
        except Unavailable as error:
            if not told.num_lines:
                raise  # nobody is there at all
            body = json.dumps({"error": {"message": error.message, "code": error.code}}).encode()
            return LineAnswer(503, "", body, error.code)

    async def answer(line: InputLine) -> None:
        try:
            done = await asked_to_its_end(ask, line, slots)
        finally:
            places.release()
        log.add(line, done)
        told.num_answered += done.is_ok
        told.num_failed += not done.is_ok
        if told.num_lines % SYNC_LINES == 0:
            log.sync()
            ERR.print(f"{told.num_lines} requests are over")

    with ThreadPoolExecutor(max_concurrent, thread_name_prefix="run-batch") as pool:
        try:
            async with asyncio.TaskGroup() as group:
                left = ((number, data) for number, data in raw_lines(source) if number not in log.answered)
                for number, data in left:
                    await places.acquire()
                    group.create_task(answer(read_line(number, data)))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return told


def _line_answer(answer: HttpAnswer) -> LineAnswer:
    wait_ms = answer.headers.get("retry-after-ms", "")
    return LineAnswer(
        status=answer.status,
        request_id=answer.headers.get("x-request-id", ""),
        body=_one_line(answer.body),
        code="" if answer.status == 200 else _code(answer.body),
        retry_after_s=int(wait_ms) / MS_PER_S if wait_ms.isdecimal() else None,
        is_hopeless=answer.headers.get("x-should-retry") == "false",
    )


def _one_line(body: bytes) -> bytes:
    """As it is where it is one line of JSON, which ours always are; another server's, and what stands before one."""
    try:
        whole = json.loads(body)
    except ValueError:
        return json.dumps({"error": {"message": body[:200].decode(errors="replace"), "code": "unavailable"}}).encode()
    return body if b"\n" not in body else json.dumps(whole).encode()


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
