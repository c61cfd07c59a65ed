"""The commands of a rendered RayCluster and gateway as plain processes of one machine.

What a pod would have of its own, they share: the address, /tmp and /dev/shm. So ports are replaced, raylets start one
after the other, and a node is drained by its name where a pod would say its address.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.helm.charts import named, of_kind, render

BIN = Path(sys.executable).parent
GUARD_S = 180.0
RAYLET_PORTS = ("node-manager-port",)
"""A pod's own; several raylets of one machine cannot have the same."""

Object = dict[str, Any]


def free_port(below: int = 10_000) -> int:
    """A port that nobody has, below those that Ray gives to its workers."""
    for port in range(below - 1, 6400, -7):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def start_flags(params: dict[str, str]) -> list[str]:
    """`ray start`'s, as KubeRay joins them into one line for a shell, read by that shell."""
    kept = {key: value for key, value in params.items() if key not in RAYLET_PORTS}
    line = " ".join(f"--{key}={value}" for key, value in sorted(kept.items()))
    command = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    split = subprocess.run(
        ["bash", "-c", f"{' '.join(command[:2])} '{command[2]}' {line}"], capture_output=True, text=True
    )
    flags: list[str] = json.loads(split.stdout)
    return flags


class PlainCluster:
    """Owns: every process that it starts, and the folder of their logs."""

    def __init__(self, values: Object) -> None:
        self.objects = render(values)
        self.cluster = of_kind(self.objects, "RayCluster")[0]["spec"]
        self.folder = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
        self.ray_port = free_port()
        self.ports = dict.fromkeys(("port", "grpc-port", "admin-port", "metrics-port"), 0)
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.num_logs = 0

    # ── Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_ray(self) -> None:
        """Head, worker groups, and the raylet beside the gateway."""
        head = start_flags(self.cluster["headGroupSpec"]["rayStartParams"])
        self.ray("head", ["--head", f"--port={self.ray_port}", f"--temp-dir={self.folder}/ray", *head])
        for group in self.cluster["workerGroupSpecs"]:
            for number in range(group["replicas"]):
                self.start_worker(f"{group['groupName']}-{number}")
        pod = named(self.objects, "Deployment", "rel-penstock-gateway")["spec"]["template"]["spec"]
        (line,) = pod["initContainers"][0]["args"]
        words = line.removeprefix("exec ray start ").split()
        own = [
            word for word in words if not word.startswith(("--address=", "--node-manager-port=")) and word != "--block"
        ]
        self.ray("gateway-raylet", [f"--address=127.0.0.1:{self.ray_port}", *own])

    def start_worker(self, name: str) -> None:
        """A worker pod's raylet, which offers one place of its role."""
        group = next(each for each in self.cluster["workerGroupSpecs"] if name.startswith(each["groupName"] + "-"))
        self.ray(name, [f"--address=127.0.0.1:{self.ray_port}", *start_flags(group["rayStartParams"])])

    def ray(self, name: str, flags: list[str]) -> None:
        """One `ray start`, up to the line that it prints when it runs."""
        log = self.spawn(name, ["ray", "start", *flags, "--block"])
        self.until(lambda: "Ray runtime started" in log.read_text(), name)

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start_gateway(self) -> None:
        """The gateway's container, up to its first readiness."""
        config = yaml.safe_load(named(self.objects, "ConfigMap", "rel-penstock")["data"]["penstock.yaml"])
        for key in self.ports:
            self.ports[key] = free_port(self.ports[key] or 9_000 - 300 * len([p for p in self.ports.values() if p]))
        config |= self.ports | {"host": "127.0.0.1", "admin-host": "127.0.0.1"}
        config["ray-address"] = f"127.0.0.1:{self.ray_port}"
        if "cluster-token-file" in config:
            assert config["cluster-port"] == 50053
            config |= {"cluster-token-file": self.mounted_token(), "cluster-port": 0}
        self.spawn("gateway", self.command_of("rel-penstock-gateway", config))
        self.until(self.is_ready, "gateway")

    def start_further(self, name: str) -> int:
        """A further gateway's container, up to its first readiness; its HTTP port."""
        config = yaml.safe_load(named(self.objects, "ConfigMap", "rel-penstock")["data"]["penstock.yaml"])
        ports = {"port": free_port(7_400 + 10 * self.num_logs), "grpc-port": 0, "metrics-port": 0}
        config |= ports | {"host": "127.0.0.1", "admin-host": "127.0.0.1", "cluster-token-file": self.mounted_token()}
        found = re.search(r"gateway --join (\S+)", re.sub(r"\s+", " ", self.tail("gateway")))
        assert found, "the first gateway says where others join"
        words = self.command_of("rel-penstock-gateway-further", config)
        words[words.index("--join") + 1] = found[1]
        self.spawn(name, words)
        self.until(lambda: self.is_ready(ports["port"]), name)
        return ports["port"]

    def mounted_token(self) -> str:
        """What the Secret would have."""
        file = self.folder / "token"
        if not file.exists():
            file.write_text(secrets.token_hex(32) + "\n")
            file.chmod(0o600)
        return str(file)

    def command_of(self, deployment: str, config: Object) -> list[str]:
        """A gateway's command with its configuration in a file of ours."""
        file = self.folder / f"{deployment}.{self.num_logs}.yaml"
        file.write_text(yaml.safe_dump(config))
        container = named(self.objects, "Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]
        args = [str(file) if word == "/etc/penstock/penstock.yaml" else word for word in container["args"]]
        return [*container["command"], *args]

    def is_ready(self, port: int = 0) -> bool:
        """What the readiness probe asks, over HTTP."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port or self.ports['port']}/ready", timeout=5) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def helm_test(self) -> list[subprocess.CompletedProcess[str]]:
        """What `helm test` runs, in order."""
        pod = named(self.objects, "Pod", "rel-penstock-test")["spec"]
        done = []
        for container in pod["containers"]:
            words = [self.localised(word) for word in (*container["command"], *container["args"])]
            words[0] = sys.executable if words[0] == "python" else words[0]
            done.append(self.run(*words))
        return done

    def localised(self, word: str) -> str:
        """A word of a command with our ports instead of the Services'."""
        word = re.sub(r"rel-penstock-grpc:50051", f"127.0.0.1:{self.ports['grpc-port']}", word)
        return re.sub(r"rel-penstock:8000", f"127.0.0.1:{self.ports['port']}", word)

    def drain(self, slot: str) -> subprocess.CompletedProcess[str]:
        """The preStop hook of a worker pod, by the node's name."""
        group = next(each for each in self.cluster["workerGroupSpecs"] if slot.startswith(each["groupName"] + "-"))
        hook = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        line = hook[2].replace('--host "$POD_IP"', slot)
        line = line.replace("rel-penstock-admin:50052", f"127.0.0.1:{self.ports['admin-port']}")
        return self.run(*hook[:2], line)

    def nodes(self) -> dict[str, Object]:
        """What `penstock status` tells of the nodes, by slot; asks again where a busy machine answers too late."""
        for _ in range(5):
            told = self.run("penstock", "status", "--json", "--admin-address", f"127.0.0.1:{self.ports['admin-port']}")
            if told.stdout:
                return {node["name"]: node for node in json.loads(told.stdout)["cluster"]["nodes"]}
        raise AssertionError(f"no status: {told.stderr}\n{self.tail('gateway')}")

    def worker_of(self, slot: str) -> str:
        """Whose raylet the slot's node is a child of: Ray gives places as it likes, and numbers mean nothing to it."""
        workers = {process.pid: name for name, process in self.processes.items()}
        pid = int(self.nodes()[slot]["pid"])
        while pid not in workers:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            assert pid > 1, f"{slot} runs in none of {sorted(workers.values())}"
        return workers[pid]

    def complete(self, max_tokens: int, port: int = 0) -> int:
        """One completion over HTTP, by default at the first gateway; how many tokens came. Raises where it fails."""
        body = json.dumps(
            {"prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        )
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port or self.ports['port']}/v1/completions",
            body.encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, name: str, command: list[str]) -> Path:
        """Starts a process in a session of its own, its output in a file."""
        self.num_logs += 1
        log = self.folder / f"{name}.{self.num_logs}.log"
        with log.open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return log

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=GUARD_S, check=False
        )

    def until(self, condition: Any, name: str = "gateway") -> None:
        """Waits; fails with the end of a process's log, at once where it has ended."""
        end = time.monotonic() + GUARD_S
        while not condition():
            process = self.processes.get(name)
            gone = process is not None and process.poll() is not None
            assert not gone and time.monotonic() < end, f"{name} never came to that: {self.tail(name)}"
            time.sleep(0.2)

    def tail(self, name: str) -> str:
        """The end of a process's last log."""
        logs = sorted(self.folder.glob(f"{name}.*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text()[-3000:] if logs else ""

    def end(self, name: str) -> int:
        """SIGTERM, as a kubelet sends it; the exit status."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GUARD_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def close(self) -> None:
        """Ends all, gateways first."""
        for name in sorted(self.processes, key=lambda each: not each.startswith("gateway")):
            if name in self.processes:
                self.end(name)
        shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """Requests one after the other from a few clients. Owns: their threads, and the account of what came back."""

    def __init__(self, cluster: PlainCluster, num_clients: int, max_tokens: int, port: int = 0) -> None:
        self._cluster, self._max_tokens, self._port = cluster, max_tokens, port
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]
        self.num_done = 0
        self.failures: list[str] = []

    def _ask(self) -> None:
        while not self._ends.is_set():
            try:
                num_tokens = self._cluster.complete(self._max_tokens, self._port)
                assert num_tokens == self._max_tokens, f"{num_tokens} tokens instead of {self._max_tokens}"
                self.num_done += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
