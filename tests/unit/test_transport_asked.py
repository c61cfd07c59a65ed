"""What `--kv-transport` may say, and what is refused before any process starts."""

from pathlib import Path

import pytest

from cluster.live.config import LiveConfig, NodeSettings, check_transport, slots_of
from core.errors import ConfigError
from kv_transfer.choose import ASKABLE


def problems(folder: Path, transport: str, device: str = "cpu") -> list[str]:
    return LiveConfig(NodeSettings(folder, device=device, transport=transport), slots_of(1, 1, 0, 256, 8)).problems()


@pytest.mark.parametrize("transport", ["auto", "measured", "shm", "gloo", "nixl"])
def test_what_nodes_of_host_memory_can_have_is_sound(tmp_path: Path, transport: str) -> None:
    assert problems(tmp_path, transport) == []


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        ("inproc", "inproc needs both nodes in one process, and here each has its own"),
        ("cuda_ipc", "cuda_ipc needs KV in device memory, and these nodes keep it in host memory"),
        ("nccl", "nccl needs KV in device memory, and these nodes keep it in host memory"),
        ("pigeon", f"'pigeon' is not known; choose one of {', '.join(ASKABLE)}"),
    ],
)
def test_what_they_cannot_have_is_refused_with_what_it_needs(tmp_path: Path, transport: str, words: str) -> None:
    assert problems(tmp_path, transport) == [f"transport: {words}"]
    with pytest.raises(ConfigError):
        check_transport(transport)


@pytest.mark.parametrize("transport", ["auto", "measured", "cuda_ipc", "nccl", "gloo", "nixl"])
def test_what_nodes_of_device_memory_can_have_is_sound(tmp_path: Path, transport: str) -> None:
    assert problems(tmp_path, transport, "cuda") == []


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        ("inproc", "inproc needs both nodes in one process, and here each has its own"),
        ("shm", "shm needs KV in host memory, and these nodes keep it on their GPUs"),
    ],
)
def test_what_those_cannot_have_is_refused_as_well(tmp_path: Path, transport: str, words: str) -> None:
    assert problems(tmp_path, transport, "cuda") == [f"transport: {words}"]
