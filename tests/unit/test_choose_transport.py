import logging

import pytest

from core.errors import ConfigError
from core.kv import KVLayout
from kv_transfer.choose import ASKABLE, NAMES, STAGED, WAYS, Place, check_asked, choose, possible, staging
from kv_transfer.faults import SWITCH, FlipOneByte, NoFaults, faults_from_environment

HERE, NEIGHBOUR, ELSEWHERE = Place("h", 1), Place("h", 2), Place("i", 1)


def names(asked: str, one: Place, other: Place, both_have: tuple[str, ...] = NAMES) -> list[str]:
    return [way.name for way in possible(asked, one, other, both_have)]


def test_what_can_join_two_nodes_depends_on_where_they_are_and_comes_best_first() -> None:
    assert names("auto", HERE, HERE) == ["inproc", "cuda_ipc", "shm", "nixl", "nccl", "gloo"]
    assert names("auto", HERE, NEIGHBOUR) == ["cuda_ipc", "shm", "nixl", "nccl", "gloo"]
    assert names("auto", HERE, ELSEWHERE) == ["nixl", "nccl", "gloo"]


ON_GPU = ("cuda_ipc", "nccl", "gloo")
"""What a node on a GPU has by itself."""


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Place("h", 2, "3B"), ["cuda_ipc", "gloo"]),
        (Place("h", 2, "5E"), ["cuda_ipc", "nccl", "gloo"]),
        (Place("i", 3, "3B"), ["nccl", "gloo"]),
    ],
    ids=["the same GPU", "another GPU of the host", "a GPU of another host, on the same place of its bus"],
)
def test_nodes_on_gpus_map_memory_on_one_host_and_use_nccl_between_two_gpus_only(
    other: Place, expected: list[str]
) -> None:
    assert names("auto", Place("h", 1, "3B"), other, ON_GPU) == expected


def test_only_a_way_of_host_memory_stages_kv_of_gpus() -> None:
    gpu, host = Place("h", 1, "3B"), Place("h", 2)
    assert [way.name for way in WAYS if staging(way, gpu, gpu) == STAGED] == ["gloo"]
    assert [way.name for way in WAYS if staging(way, gpu, host)] == ["gloo"]
    assert not any(staging(way, host, host) for way in WAYS)


def test_two_nodes_of_one_gpu_cannot_have_nccl_by_name() -> None:
    with pytest.raises(ConfigError, match="nccl needs KV on a GPU of its own for each node"):
        possible("nccl", Place("h", 1, "3B"), Place("h", 2, "3B"), ON_GPU)


def test_only_what_both_sides_have_can_join_them() -> None:
    assert names("auto", HERE, NEIGHBOUR, ("gloo", "shm")) == ["shm", "gloo"]
    assert names("measured", HERE, ELSEWHERE, ("gloo", "shm")) == ["gloo"]
    with pytest.raises(ConfigError, match="nothing joins these two; both have: shm"):
        possible("auto", HERE, ELSEWHERE, ("shm",))
    with pytest.raises(ConfigError, match="both have: none"):
        possible("auto", HERE, ELSEWHERE, ())


def test_the_best_transport_of_a_pair_is_chosen_and_said() -> None:
    choice = choose("auto", possible("auto", HERE, NEIGHBOUR, ("shm", "gloo")), {})
    assert choice.transport == "shm"
    assert choice.message == ("shm (automatic: both nodes on one host, in one network namespace); also possible: gloo")


def test_the_fastest_is_chosen_where_that_is_asked_for_and_all_were_measured() -> None:
    ways = possible("measured", HERE, NEIGHBOUR, ("shm", "gloo"))
    choice = choose("measured", ways, {"shm": 2e9, "gloo": 3e9})
    assert choice.transport == "gloo"
    assert choice.message == "gloo (measured: gloo 3 GB/s, shm 2 GB/s); also possible: shm"
    assert choose("measured", ways, {"gloo": 3e9}).transport == "shm"
    assert choose("auto", ways, {"shm": 2e9, "gloo": 3e9}).transport == "shm"


def test_a_transport_that_was_asked_for_is_taken_alone_where_it_can_work() -> None:
    choice = choose("gloo", possible("gloo", HERE, NEIGHBOUR, ("shm", "gloo")), {})
    assert [way.name for way in choice.order] == ["gloo"]
    assert choice.message == "gloo (as asked)"


def test_a_transport_that_was_asked_for_and_cannot_work_is_refused_with_its_need() -> None:
    with pytest.raises(ConfigError, match="shm needs both nodes on one host"):
        possible("shm", HERE, ELSEWHERE, NAMES)
    with pytest.raises(ConfigError, match="inproc needs both nodes in one process"):
        possible("inproc", HERE, NEIGHBOUR, NAMES)
    with pytest.raises(ConfigError, match="nccl needs KV on a GPU of its own"):
        possible("nccl", HERE, NEIGHBOUR, ("shm", "gloo"))


def test_every_name_can_be_asked_for_and_an_unknown_one_is_refused_with_the_known_ones() -> None:
    for name in ASKABLE:
        check_asked(name)
    with pytest.raises(ConfigError, match="'pigeon' is not known; choose one of auto, measured, inproc, cuda_ipc, shm"):
        check_asked("pigeon")


def test_this_process_is_always_in_the_same_place() -> None:
    assert Place.here() == Place.here()


def test_without_the_switch_there_are_no_faults(caplog: pytest.LogCaptureFixture) -> None:
    layout = KVLayout(1, 1, 8, 4, "float32")
    for environment in ({}, {SWITCH: ""}, {SWITCH: "0"}):
        assert isinstance(faults_from_environment(layout, environment), NoFaults)
    assert not caplog.records


def test_an_active_fault_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(faults_from_environment(KVLayout(1, 1, 8, 4, "float32"), {SWITCH: "2"}), FlipOneByte)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_another_value_of_the_switch_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="must be 0, 1 or 2"):
        faults_from_environment(KVLayout(1, 1, 8, 4, "float32"), {SWITCH: "3"})
