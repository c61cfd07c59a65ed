"""Flag over environment over file over default; each value knows where it came from, each problem where it stands."""

import itertools
from pathlib import Path

import pytest

from cluster.config_layers import read_arguments
from core.errors import ConfigError
from tests.config.commands import read, small, sources


def test_without_anything_all_is_as_the_parser_alone_says() -> None:
    found = read()
    alone = small().parse_args(["run"])
    told = {name: value for name, value in vars(found.args).items() if name not in ("layers", "config_parsers")}
    assert told == {name: value for name, value in vars(alone).items() if name != "config_parsers"}
    assert sources(found) == {}
    assert found.problems == ()


@pytest.mark.parametrize("layers", list(itertools.product((False, True), repeat=3)))
def test_a_flag_wins_over_the_environment_it_over_the_file_and_it_over_the_default(
    layers: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    in_file, in_environment, as_flag = layers
    found = read(
        ["--num-rows", "3"] if as_flag else [],
        {"PENSTOCK_NUM_ROWS": "2"} if in_environment else {},
        "num-rows: 1" if in_file else None,
        tmp_path,
    )
    expected = 3 if as_flag else 2 if in_environment else 1 if in_file else 64
    source = "flag" if as_flag else "PENSTOCK_NUM_ROWS" if in_environment else f"{tmp_path}/tool.yaml, line 1"
    assert found.args.num_rows == expected
    assert sources(found) == ({"num-rows": source} if any(layers) else {})


def test_every_kind_of_value_is_the_same_whichever_way_it_comes(tmp_path: Path) -> None:
    flags = "m --num-rows 16K --share 0.25 --part 1/8 --depth 2 --rates 1 2.5 --no-keys --no-cache --mode off"
    by_flag = read_arguments(small(), ["--log-level", "debug", "run", *flags.split()], {})
    environ = {
        "PENSTOCK_MODEL": "m",
        "PENSTOCK_NUM_ROWS": "16K",
        "PENSTOCK_SHARE": "0.25",
        "PENSTOCK_PART": "1/8",
        "PENSTOCK_DEPTH": "2",
        "PENSTOCK_RATES": "1, 2.5",
        "PENSTOCK_NO_KEYS": "true",
        "PENSTOCK_CACHE": "0",
        "PENSTOCK_MODE": "off",
        "PENSTOCK_LOG_LEVEL": "debug",
    }
    file = (
        "model: m\nnum-rows: 16384\nshare: 0.25\npart: 1/8\ndepth: 2\nrates: [1, 2.5]\nno-keys: true\n"
        "cache: false\nmode: off\nlog-level: debug\n"
    )
    by_variable, by_file = read(environ=environ), read(file=file, folder=tmp_path)
    values = [{it.setting.key: it.value for it in found.values} for found in (by_flag, by_variable, by_file)]
    assert values[0] == values[1] == values[2]
    assert (by_file.args.part, by_file.args.rates, by_file.args.mode) == (0.125, [1.0, 2.5], "off")
    assert by_variable.problems == by_file.problems == ()


def test_the_environment_can_name_the_file_and_a_flag_names_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("num-rows: 1")
    second.write_text("num-rows: 2")
    environ = {"PENSTOCK_CONFIG": str(first)}
    assert read(environ=environ).args.num_rows == 1
    assert read(["--config", str(second)], environ).args.num_rows == 2


def test_all_problems_are_told_at_once_with_key_and_place(tmp_path: Path) -> None:
    file = "numrows: 1\nshare: much\n\ndepth: 3\nrates: 5\nnum_rows: 2\nmode: true\nno-keys: 1\nmodel: 7\npart: half\n"
    environ = {"PENSTOCK_NUM_ROW": "1", "PENSTOCK_SHARE": "x", "PENSTOCK_CACHE": "maybe", "PENSTOCK_RATES": "1,two"}
    found = read(environ=environ, file=file, folder=tmp_path)
    place = f"{tmp_path}/tool.yaml, line"
    assert list(found.problems) == [
        f"{place} 1: numrows is not known; did you mean 'num-rows'?",
        f"{place} 2: share must be a number",
        f"{place} 4: depth must be one of 1, 2",
        f"{place} 5: rates must be a list",
        f"{place} 6: num_rows is not known; did you mean 'num-rows'?",
        f"{place} 7: mode must be a string; put it in quotes",
        f"{place} 8: no-keys must be a boolean",
        f"{place} 9: model must be a string; put it in quotes",
        f"{place} 10: part is not taken: 'half' is no fraction",
        "environment: PENSTOCK_NUM_ROW is not known; did you mean 'PENSTOCK_NUM_ROWS'?",
        "environment: PENSTOCK_SHARE must be a number",
        "environment: PENSTOCK_CACHE must be true or false",
        "environment: PENSTOCK_RATES must be a number",
    ]
    assert sources(found) == {}


def test_what_kubernetes_and_penstock_itself_put_into_the_environment_is_no_setting() -> None:
    environ = {
        "PENSTOCK_MODEL": "tcp://10.0.0.1:80",
        "PENSTOCK_PORT": "tcp://10.0.0.1:8000",
        "PENSTOCK_PORT_8000_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_GATEWAY_PORT": "tcp://10.0.0.1:50051",
        "PENSTOCK_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_GATEWAY_SERVICE_PORT_GRPC": "50051",
        "PENSTOCK_API_KEY": "psk-secret",
        "PENSTOCK_NATIVE": "0",
        "PENSTOCK_SHARE": "",
    }
    found = read(environ=environ)
    assert found.problems == ()
    assert sources(found) == {"model": "PENSTOCK_MODEL"}, "a service is not called like a flag that is no port"
    assert len(read(environ={"PENSTOCK_ADMN_PORT": "7"}).problems) == 1, "a typing error is no service"


def test_a_command_without_configuration_reads_neither_file_nor_environment() -> None:
    found = read_arguments(small(), ["other"], {"PENSTOCK_NUM_ROWS": "9", "PENSTOCK_NONSENSE": "x"})
    assert (found.args.num_rows, found.problems, found.values) == (1, (), ())


def test_a_problem_with_flags_says_which_of_them_came_from_elsewhere(tmp_path: Path) -> None:
    found = read(["--share", "2"], {"PENSTOCK_DEPTH": "2"}, "num-rows: 9", tmp_path)
    told = found.told("--num-rows (9) times --depth and --share must not exceed --rates")
    assert told.endswith(f"(num-rows is from {tmp_path}/tool.yaml, line 1; depth is from PENSTOCK_DEPTH)")
    assert found.told("--num-rows-more is wrong") == "--num-rows-more is wrong"


@pytest.mark.parametrize("content", ["- a\n", "text", "a: [", "a: 1\na: 2", "a: &x 1\nb: *x", "\x00"])
def test_a_file_that_is_no_list_of_keys_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tool\.yaml"):
        read(file=content, folder=tmp_path)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(["--config", "/nowhere/tool.yaml"])


def test_an_empty_file_and_empty_values_change_nothing(tmp_path: Path) -> None:
    for content in ("", "# nothing\n", "num-rows:\nshare: null\n"):
        found = read(file=content, folder=tmp_path)
        assert (sources(found), found.problems) == ({}, ())


def test_secrets_are_masked_and_paths_are_not(tmp_path: Path) -> None:
    flags = ["--api-token", "hush", "--tls-key", "/k.pem", "--proxy", "http://me:hush@proxy:80/x"]
    shown = {it.setting.key: it.setting.shown(it.value) for it in read(flags).values}
    assert shown["api-token"] == "********"
    assert shown["tls-key"] == "/k.pem"
    assert shown["proxy"] == "http://********@proxy:80/x"
    assert "hush" not in str(shown)
