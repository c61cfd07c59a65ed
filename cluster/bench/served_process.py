"""A server of somebody else's, or our own, as a process beside its nodes: what it alone takes of the processor.

Standard library only: peers run it in environments of their own.
"""

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

START_S = 300.0
LOOK_S = 0.5
STOP_S = 20.0
SHOWN_LINES = 8


class ServedProcess:
    """`ready` is the path that answers with 200 as soon as requests are taken.

    Owns: the process, which ends with it, and the file that it writes to.
    """

    def __init__(self, command: Sequence[str], port: int, ready: str = "/health") -> None:
        self.port = port
        self._ready = ready
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Until it says that it is ready. Raises RuntimeError."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}: {self._last_words()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._ready}", timeout=5):
                    return self._check_others()
            except (urllib.error.URLError, OSError):
                time.sleep(LOOK_S)
        raise RuntimeError(f"the server was not ready within {START_S:g} s")

    def cpu(self) -> dict[str, object]:
        """Seconds of the server's process alone; the kernel counts in hundredths."""
        ticks = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return {"cpu_s": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")}

    def stop(self) -> None:
        """End it, gently where it listens."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _check_others(self) -> None:
        """Raises RuntimeError where the model runs in the server's own process, whose time would then be both."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        if not any((task / "children").read_text().split() for task in tasks):
            raise RuntimeError("its engine is no process of its own")

    def _last_words(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read().splitlines()[-SHOWN_LINES:])


def free_port() -> int:
    """One that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
