"""`penstock doctor`: what this machine has, what is missing, and the command that mends it."""

import importlib
import json
import os
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from cluster.console import OUT
from cluster.flags import DEFAULT_PORT
from cluster.memory import available_memory_bytes
from cluster.report_file import machine
from core.errors import PenstockError

MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "fail": "[red]fail[/red]"}
MIN_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `status` is ok, note (works, with a limit) or fail; `next` is what to do, empty where nothing is."""

    name: str
    status: str
    text: str
    next: str = ""


def run_doctor(json_path: str | None) -> int:
    """Runs all checks and prints them; 1 where one failed."""
    findings = [finding for check in CHECKS for finding in check()]
    table = Table(title="penstock doctor", title_justify="left")
    for column in ("check", "", "found", "next"):
        table.add_column(column)
    for finding in findings:
        table.add_row(finding.name, MARKS[finding.status], finding.text, finding.next)
    OUT.print(table)
    num_failed = sum(finding.status == "fail" for finding in findings)
    OUT.print("All is well." if not num_failed else f"{num_failed} checks failed.")
    if json_path:
        rows = [{"name": f.name, "status": f.status, "text": f.text, "next": f.next} for f in findings]
        figures = {"doctor.failed": num_failed, "doctor.notes": sum(f.status == "note" for f in findings)}
        Path(json_path).write_text(json.dumps({"figures": figures, "machine": machine(), "samples": rows}, indent=2))
    return 1 if num_failed else 0


def _python() -> list[Finding]:
    found = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return [Finding("python", "fail", f"{found}; 3.11 to 3.13 are supported", "install Python 3.12")]
    return [Finding("python", "ok", found)]


def _system() -> list[Finding]:
    if sys.platform != "linux":
        return [Finding("system", "fail", f"{sys.platform}; memfd and SCM_RIGHTS need Linux", "run it on Linux")]
    return [Finding("system", "ok", f"{platform.system()} {platform.release()}")]


def _packages() -> list[Finding]:
    findings = []
    for name, module in (
        ("grpcio", "grpc"),
        ("msgpack", "msgpack"),
        ("xxhash", "xxhash"),
        ("tokenizers", "tokenizers"),
    ):
        try:
            importlib.import_module(module)
            findings.append(Finding(name, "ok", version(name)))
        except (ImportError, PackageNotFoundError) as error:
            findings.append(Finding(name, "fail", str(error), "pip install penstock"))
    try:
        findings.append(Finding("ray", "ok", version("ray")))
    except PackageNotFoundError:
        findings.append(Finding("ray", "note", "not installed", "pip install ray, or use --launcher local"))
    return findings


def _torch() -> list[Finding]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return [Finding("torch", "fail", str(error), "pip install torch (see the README for CPU builds)")]
    build = f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding("torch", "ok", build), Finding("gpu", "ok", names), _cupy()]
    return [Finding("torch", "ok", build), Finding("gpu", "note", "none; nodes run on the CPU")]


def _cupy() -> Finding:
    """Without it KV cannot lie on a GPU, so `serve --device cuda` is refused."""
    from kv_transfer.cuda_device import can_run

    if why := can_run():
        return Finding("cupy", "note", why, "pip install 'penstock[cuda]' (CUDA 13) or 'penstock[cuda12]'")
    return Finding("cupy", "ok", str(importlib.import_module("cupy").__version__))


def _cores_and_memory() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = available_memory_bytes()
    findings = [Finding("cores", "ok", str(cores))]
    if cores < 2:
        findings = [Finding("cores", "note", "1: prefill and decode share it", "use --aggregated 1")]
    text = f"{memory / 2**30:.1f} GiB free"
    if memory < MIN_MEMORY_BYTES:
        return [*findings, Finding("memory", "note", text, "use --launcher local and a small --kv-cache-memory-bytes")]
    return [*findings, Finding("memory", "ok", text)]


def _shared_memory() -> list[Finding]:
    try:
        os.close(os.memfd_create("penstock-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except (OSError, AttributeError) as error:
        return [Finding("shared memory", "fail", f"memfd_create: {error}", "use a kernel of 5.1 or later")]
    return [Finding("shared memory", "ok", "memfd")]


def _port() -> list[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            return [Finding("gRPC port", "note", f"{DEFAULT_PORT}: {error.strerror}", "penstock serve --grpc-port 0")]
    return [Finding("gRPC port", "ok", f"{DEFAULT_PORT} is free")]


def _model() -> list[Finding]:
    from cluster.service import EMBEDDED_MODEL
    from engine.model_info import read_model_info

    try:
        info = read_model_info(EMBEDDED_MODEL)
    except PenstockError as error:
        return [Finding("embedded model", "fail", error.message, "reinstall penstock")]
    text = f"{info.family}, {info.num_layers} layers, context {info.max_model_len}"
    return [Finding("embedded model", "ok", text)]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _system,
    _cores_and_memory,
    _packages,
    _torch,
    _shared_memory,
    _port,
    _model,
)
