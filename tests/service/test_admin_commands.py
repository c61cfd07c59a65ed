"""The operators' commands on a live cluster: what is seen, what changes, and that answers stay the same."""

import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.ratio import roles_for
from core.errors import ConfigError
from tests.service.running import Running, running
from tests.service.test_command_line import penstock

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def four() -> Iterator[Running]:
    """Two prefill and two decode nodes, with an operators' port."""
    with running("--prefill", "2", "--decode", "2", "--admin-http-port", "0", "--debug-node-headers") as service:
        yield service


class Commands:
    """Commands against one admin port."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return penstock(*words, "--admin-address", self._address)

    def roles(self) -> dict[str, str]:
        """Slot to role, as `status --json` tells it."""
        told = json.loads(self("status", "--json").stdout)
        return {node["name"]: node["role"] for node in told["cluster"]["nodes"]}


@pytest.fixture(scope="module")
def command(four: Running) -> Commands:
    assert four.service.admin is not None
    return Commands(four.service.admin.address)


def text(four: Running) -> tuple[int, ...]:
    sampling = pb.SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    return four.ask(pb.GenerateRequest(text="Once upon a time", sampling=sampling)).token_ids


@slow
def test_status_shows_every_node_and_its_blocks(command: Commands) -> None:
    shown = command("status")
    assert shown.returncode == 0, shown.stderr
    assert "serving; 2 prefill, 2 decode" in shown.stdout
    for slot in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
        assert slot in shown.stdout
    top = command("top", "--num-updates", "2", "--interval", "0.1")
    assert top.returncode == 0, top.stderr
    assert "decode-1" in top.stdout


@slow
def test_roles_and_ratios_change_by_hand_and_are_given_back(four: Running, command: Commands) -> None:
    calm = text(four)
    for words, roles in (
        (("ratio", "1:3"), ["decode", "decode", "decode", "prefill"]),
        (("role", "decode-0", "mixed"), ["decode", "decode", "mixed", "prefill"]),
        (("role", "decode-1", "prefill"), ["decode", "mixed", "prefill", "prefill"]),
    ):
        done = command(*words)
        assert done.returncode == 0, done.stderr
        four.until(lambda wanted=roles: sorted(command.roles().values()) == wanted)  # type: ignore[misc]
        assert text(four) == calm
    assert " hand " in command("status").stdout
    assert command("ratio", "auto").returncode == 0
    began = {"prefill-0": "prefill", "prefill-1": "prefill", "decode-0": "decode", "decode-1": "decode"}
    four.until(lambda: command.roles() == began)
    decisions = command("decisions").stdout
    assert "override: the operator sets mixes" in decisions
    assert "the operator gives nodes back" in decisions


@slow
def test_a_drained_node_stays_closed_until_it_is_given_back_and_answers_go_on(four: Running, command: Commands) -> None:
    calm = text(four)
    done = command("drain", "decode-0")
    assert done.returncode == 0, done.stderr
    assert "empty" in done.stdout
    assert command.roles()["decode-0"] == "closed"
    assert "drain" in command("status").stdout
    assert text(four) == calm
    last = command("drain", "decode-1")
    assert last.returncode == 1
    assert "phase_uncovered" in last.stderr
    assert command("role", "decode-0", "auto").returncode == 0
    four.until(lambda: command.roles()["decode-0"] == "decode")


@slow
def test_over_http_operators_change_the_same_cluster(four: Running, command: Commands) -> None:
    calm = text(four)
    assert four.service.admin_http is not None
    with httpx.Client(base_url=four.service.admin_http.url, timeout=60, trust_env=False) as client:
        told = client.post("/cluster/ratio", json={"prefill": 1, "decode": 3}).json()["nodes"]
        assert [it["was"] for it in told] == ["prefill", "prefill", "decode", "decode"]
        wanted = {it["node"]: it["role"] for it in told}
        four.until(lambda: command.roles() == wanted)
        drained = client.post("/nodes/decode-0/drain", json={"timeout_s": 50})
        assert drained.json() == {"node": "decode-0", "num_left": 0}
        four.until(lambda: command.roles()["decode-0"] == "closed")
        assert text(four) == calm
        assert client.post("/cluster/ratio", json={"ratio": "1:3"}).status_code == 400, "three are not drained"
        assert client.post("/cluster/ratio", json={"ratio": "auto"}).status_code == 200
    began = {"prefill-0": "prefill", "prefill-1": "prefill", "decode-0": "decode", "decode-1": "decode"}
    four.until(lambda: command.roles() == began)


@slow
def test_answers_tell_their_nodes_where_the_server_was_told_to(four: Running) -> None:
    assert four.service.http is not None
    body = {"prompt": "Once upon a time", "max_tokens": 4}
    with httpx.Client(base_url=four.service.http.url, timeout=60, trust_env=False) as client:
        for stream in (False, True):
            headers = client.post("/v1/completions", json={**body, "stream": stream}).headers
            assert headers["x-prefill-node"].startswith("prefill-") and headers["x-decode-node"].startswith("decode-")


@slow
def test_after_a_flush_nothing_is_cached_and_answers_stay_the_same(four: Running) -> None:
    calm = text(four)
    assert four.service.admin_http is not None
    with httpx.Client(base_url=four.service.admin_http.url, timeout=60, trust_env=False) as client:
        four.until_idle(4)
        told = client.post("/flush_cache", json={}).json()
        assert {it["node"] for it in told["nodes"]} == set(four.nodes())
        assert told["num_blocks"] == sum(it["num_blocks"] for it in told["nodes"]) > 0
        again = client.post("/flush_cache", json={}).json()
        assert [it["num_blocks"] for it in again["nodes"]] == [0, 0, 0, 0]
    assert text(four) == calm


@slow
@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("role", "nobody", "decode"), 1, "there are prefill-0, prefill-1, decode-0, decode-1"),
        (("ratio", "1:2"), 2, "does not go into the 4 nodes"),
        (("ratio", "0:4"), 2, "both at least 1"),
        (("ratio", "many"), 2, "P:D"),
    ],
)
def test_what_cannot_be_done_says_what_can(command: Commands, words: tuple[str, ...], status: int, says: str) -> None:
    done = command(*words)
    assert done.returncode == status
    assert says in done.stderr


@slow
def test_without_a_server_the_commands_say_where_they_looked() -> None:
    done = penstock("status", "--admin-address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "--admin-address" in done.stderr


@pytest.mark.parametrize(
    ("ratio", "now", "wanted"),
    [
        ("1:1", {"a": "prefill", "b": "decode"}, {"a": "prefill", "b": "decode"}),
        ("1:1", {"a": "decode", "b": "prefill"}, {"a": "decode", "b": "prefill"}),
        ("1:1", {"a": "mixed", "b": "mixed"}, {"a": "prefill", "b": "decode"}),
        ("3:1", dict.fromkeys("abcd", "decode"), {"a": "prefill", "b": "prefill", "c": "prefill", "d": "decode"}),
        ("1:1", {"a": "decode", "b": "closed", "c": "prefill", "d": "mixed"}, None),
    ],
)
def test_a_ratio_changes_as_few_nodes_as_can_be(ratio: str, now: dict[str, str], wanted: dict[str, str] | None) -> None:
    roles = roles_for(ratio, now)
    assert wanted is None or roles == wanted
    assert list(roles.values()).count("prefill") * int(ratio[2]) == list(roles.values()).count("decode") * int(ratio[0])
    kept = [name for name, role in now.items() if role == roles[name]]
    assert all(name in kept for name in now if now[name] in ("prefill", "decode")) or wanted is not None


def test_a_ratio_that_does_not_go_into_the_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="divide it"):
        roles_for("1:2", dict.fromkeys("abcd", "decode"))
