"""For all tests: nothing may be left behind, and every skip has to be on a list. Imports nothing but pytest."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two pools of threads on two cores make a decode step six times slower
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children


BEFORE = pytest.StashKey[leftovers.Holdings]()


@pytest.fixture(autouse=True, scope="module")
def _holdings_before(request: pytest.FixtureRequest) -> None:
    """Remembers, once longer-lived fixtures stand, what the process holds before a module."""
    leftovers.warm()
    request.node.stash[BEFORE] = leftovers.holdings()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Asserts, after the last test of a module, that no descriptor, segment, thread or process is new.

    A hook and not the end of a fixture, for until here a caught log record may hold a traceback, and that a server.
    Left out: modules marked `gpu`, where the driver opens what it likes, and the descriptors of those marked `ray`.
    """
    result = yield
    module = item.getparent(pytest.Module)
    if module is None or (nextitem is not None and nextitem.getparent(pytest.Module) is module):
        return result
    if BEFORE not in module.stash or module.get_closest_marker("gpu"):
        return result
    left = leftovers.left_since(module.stash[BEFORE])
    if module.get_closest_marker("ray"):
        left = [what for what in left if "descriptor" not in what]
    assert not left, f"{module.name} left behind: " + "; ".join(left)
    return result


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--allowed-skips=FILE`: a list of regular expressions; a skip for any other reason fails the run."""
    parser.addoption(
        "--allowed-skips", default=None, metavar="FILE", help="fail on skips whose reason FILE does not list"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run on a skip that is not allowed."""
    if session.exitstatus == pytest.ExitCode.OK and _not_allowed(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Lists the skips that are not allowed."""
    if wrong := _not_allowed(config):
        terminalreporter.section("skips that tests/allowed_skips.txt does not list", red=True)
        for line in wrong:
            terminalreporter.line(line)


def _not_allowed(config: pytest.Config) -> list[str]:
    path = config.getoption("--allowed-skips")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if path is None or reporter is None:
        return []
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]
    skips = [(report.nodeid, _reason(report)) for report in reporter.stats.get("skipped", [])]
    return [f"{nodeid}: {why}" for nodeid, why in skips if not any(pattern.search(why) for pattern in allowed)]


def _reason(report: pytest.TestReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
