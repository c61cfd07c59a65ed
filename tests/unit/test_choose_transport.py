import logging

import pytest

from core.errors import ConfigError
from core.kv import KVLayout
from kv_transfer.choose import NOT_BUILT, Choice, Place, check_asked, choose
from kv_transfer.faults import SWITCH, FlipOneByte, NoFaults, faults_from_environment

HERE, NEIGHBOUR, ELSEWHERE = Place("h", 1), Place("h", 2), Place("i", 1)


def test_the_best_transport_of_a_pair_is_chosen_and_said() -> None:
    assert choose("auto", HERE, HERE).transport == "inproc"
    assert choose("auto", HERE, NEIGHBOUR) == Choice(
        "shm",
        "transport: shm (automatic: both nodes on one host, in one network namespace); "
        "not in this version: cuda_ipc, nixl, gloo, nccl",
    )


def test_a_transport_that_was_asked_for_is_taken_where_it_can_work() -> None:
    assert choose("shm", HERE, HERE).transport == "shm"
    assert "as asked" in choose("shm", HERE, NEIGHBOUR).message


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_transport_that_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"transport: {name} is not built"):
        choose(name, HERE, NEIGHBOUR)


def test_an_unknown_transport_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'pigeon' is not known; choose one of auto, inproc, shm"):
        check_asked("pigeon")


def test_a_pair_without_a_transport_is_refused() -> None:
    with pytest.raises(ConfigError, match="joins two hosts"):
        choose("auto", HERE, ELSEWHERE)
    with pytest.raises(ConfigError, match="shm needs both nodes on one host"):
        choose("shm", HERE, ELSEWHERE)
    with pytest.raises(ConfigError, match="inproc needs both nodes in one process"):
        choose("inproc", HERE, NEIGHBOUR)


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
