"""The access file and `penstock keys`: what it may say, every problem by its place, and a key that is shown once."""

import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.access_flags import check_host, is_loopback, with_access
from cluster.cli import _parser, main
from cluster.flags import service_config
from cluster.gateway.access import Access
from cluster.gateway.keys import Quota, ServiceClass
from cluster.gateway.keys_file import MAX_KEYS, read_access_file
from core.errors import ConfigError
from core.request import SLO

DIGEST = "ab" * 32
FULL = f"""
keys:
  - id: acme-chat
    sha256: {DIGEST}
    tenant: acme
    models: [tiny]
    requests_per_minute: 60
    tokens_per_minute: 100000
    max_concurrent: 4
    max_priority: 2
    slo_class: chat
    slo: {{ttft_s: 1, tpot_s: 0.1}}
    cache_salt: s
    expires: 2027-01-31
    admin: true
  - id: plain
    sha256: {"cd" * 32}
classes:
  chat:
    slo: {{ttft_s: 0.5, tpot_s: 0.05}}
    priority: 3
  bulk: {{priority: -5}}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "access.yaml"
    path.write_text(text)
    return path


def test_everything_that_a_file_can_say_is_read(tmp_path: Path) -> None:
    settings = read_access_file(written(tmp_path, FULL))
    first, second = settings.keys
    assert first.digest.hex() == DIGEST
    grant = first.grant
    assert (grant.id, grant.tenant, grant.models, grant.is_admin) == ("acme-chat", "acme", ("tiny",), True)
    assert grant.quota == Quota(60, 100_000, 4)
    assert (grant.max_priority, grant.slo_class, grant.slo, grant.cache_salt) == (2, "chat", SLO(1, 0.1), "s")
    assert grant.expires_at == datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert (second.grant.tenant, second.grant.quota, second.grant.expires_at) == ("plain", Quota(), None)
    assert settings.classes == (ServiceClass("chat", SLO(0.5, 0.05), 3), ServiceClass("bulk", None, -5))
    assert (settings.is_open, settings.has_admin) == (False, True)


def test_json_is_taken_as_well_and_classes_alone_ask_for_no_key(tmp_path: Path) -> None:
    text = json.dumps({"classes": {"chat": {"slo": {"ttft_s": 0.5, "tpot_s": 0.05}}}})
    settings = read_access_file(written(tmp_path, text))
    assert (settings.is_open, settings.classes[0].name) == (True, "chat")


def test_every_problem_is_told_by_its_place_and_line(tmp_path: Path) -> None:
    text = (
        "keys:\n"
        "  - id: a b\n"
        "    sha256: abc\n"
        "    tenent: x\n"
        "    requests_per_minute: 0\n"
        "    max_priority: 11\n"
        "    slo: {ttft_s: 1}\n"
        "  - id: 7\n"
        "    max_concurrent: true\n"
        "classes:\n"
        "  chat: {slo: {ttft_s: 0, tpot_s: 601}, prio: 1}\n"
        "clases: {}\n"
    )
    with pytest.raises(ConfigError) as refused:
        read_access_file(written(tmp_path, text))
    told = [re.sub(r"^.*access\.yaml, ", "", problem) for problem in refused.value.problems]
    assert sorted(line.split(": ")[0] + " " + line.split(": ")[1] for line in told) == [
        "line 11 classes.chat.prio",
        "line 11 classes.chat.slo.tpot_s",
        "line 11 classes.chat.slo.ttft_s",
        "line 12 clases",
        "line 2 keys[0].id",
        "line 3 keys[0].sha256",
        "line 4 keys[0].tenent",
        "line 5 keys[0].requests_per_minute",
        "line 6 keys[0].max_priority",
        "line 7 keys[0].slo.tpot_s",
        "line 8 keys[1].id",
        "line 8 keys[1].sha256",
        "line 9 keys[1].max_concurrent",
    ]
    assert any("did you mean 'tenant'" in line for line in told)
    assert any("did you mean 'classes'" in line for line in told)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            f"keys: [{{id: a, sha256: {DIGEST}}}, {{id: a, sha256: {'cd' * 32}}}]",
            "keys[1].id: another key has the same",
        ),
        (f"keys: [{{id: a, sha256: {DIGEST}}}, {{id: b, sha256: {DIGEST}}}]", "keys[1].sha256: another key"),
        (f"keys: [{{id: a, sha256: {DIGEST}, slo_class: gold}}]", "keys[0].slo_class: 'gold' is not known"),
        (f"keys: [{{id: a, sha256: {DIGEST}, expires: soon}}]", "is no date such as"),
        ("keys: {}", "keys"),
        ("[]", "the file"),
        ("keys: [{}]", "keys[0].sha256"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_access_file(written(tmp_path, text))
    assert any(says in problem for problem in refused.value.problems), refused.value.problems


def test_a_key_that_stands_in_the_file_itself_is_not_said_back(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_access_file(written(tmp_path, "keys: [{id: a, sha256: psk-my-real-key}]"))
    assert "psk-my-real-key" not in str(refused.value)


def test_more_keys_than_can_be_compared_quickly_are_refused(tmp_path: Path) -> None:
    keys = [{"id": f"k{number}", "sha256": f"{number:064x}"} for number in range(MAX_KEYS + 1)]
    with pytest.raises(ConfigError, match="keys"):
        read_access_file(written(tmp_path, json.dumps({"keys": keys})))


def minted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main(["keys", "new", *words]) == 0
    told = capsys.readouterr()
    return told.out.strip(), told.err


def test_a_minted_key_opens_what_its_entry_says_and_is_shown_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "access.yaml"
    first, told = minted(capsys, "one", "--access-file", str(path), "--tenant", "acme", "--max-priority", "0")
    path.write_text(
        path.read_text().replace("keys:", "# ours\nkeys:  # all of them") + "classes: {bulk: {priority: -1}}\n"
    )
    second, _ = minted(capsys, "two", "--access-file", str(path), "--model", "a: [b", "--slo-class", "bulk", "--admin")
    assert first not in told + path.read_text() and second not in path.read_text()
    assert "# ours" in path.read_text() and "# all of them" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    access = Access(read_access_file(path))
    one, two = (access.caller(f"Bearer {key}", 0.0).grant for key in (first, second))
    assert (one.id, one.tenant, one.max_priority, one.is_admin) == ("one", "acme", 0, False)
    assert (two.models, two.slo_class, two.is_admin) == (("a: [b",), "bulk", True)
    assert main(["keys", "list", str(path)]) == 0
    listed = capsys.readouterr().out
    assert "two (admin)" in listed and "class bulk" in listed


def test_without_a_file_the_entry_is_printed_for_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key, told = minted(capsys, "one")
    entry = told.partition("keys:\n")[2]
    settings = read_access_file(written(tmp_path, "keys:\n" + entry))
    assert Access(settings).caller(f"Bearer {key}", 0.0).grant.id == "one"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("a b",)),
        (None, ("one", "--requests-per-minute", "0")),
        (None, ("one", "--slo-class", "gold")),
        (None, ("one", "--expires", "soon")),
        (f"keys: [{{id: one, sha256: {DIGEST}}}]\n", ("two",)),
        (f"keys:\n  - {{id: one, sha256: {DIGEST}}}\n", ("one",)),
    ],
)
def test_an_entry_that_would_not_be_taken_leaves_the_file_as_it_was(
    content: str | None, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "access.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["keys", "new", *words, "--access-file", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == "", "a key that opens nothing"
    assert (path.read_text() if path.exists() else None) == content
    assert [each.name for each in tmp_path.iterdir()] == ([] if content is None else ["access.yaml"])


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_only_loopback_is_this_machine(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


def configured(*flags: str) -> object:
    args = _parser().parse_args(["serve", "--launcher", "local", *flags])
    return with_access(service_config(args), args)


def test_a_server_beyond_loopback_needs_a_key_or_the_word_of_its_operator(tmp_path: Path) -> None:
    user = f"keys: [{{id: a, sha256: {DIGEST}}}]"
    path = written(tmp_path, user)
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 is open to other machines"):
        configured("--host", "0.0.0.0")
    assert configured("--host", "0.0.0.0", "--insecure-no-keys")
    assert configured("--host", "0.0.0.0", "--access-file", str(path))
    with pytest.raises(ConfigError, match="--admin-host"):
        configured("--admin-host", "0.0.0.0", "--access-file", str(path))
    path.write_text(user.replace("id: a", "id: a, admin: true"))
    assert configured("--admin-host", "0.0.0.0", "--access-file", str(path))


def test_the_operators_port_is_the_one_after_the_public_unless_told_otherwise() -> None:
    for flags, port in (
        ((), 50052),
        (("--grpc-port", "7000"), 7001),
        (("--grpc-port", "0"), 0),
        (("--grpc-port", "65535"), 0),
        (("--admin-port", "9"), 9),
    ):
        assert configured(*flags).admin.port == port  # type: ignore[attr-defined]
    assert configured("--admin-port", "-1").admin is None  # type: ignore[attr-defined]


def test_operators_are_served_over_http_where_a_port_is_named_and_by_the_rules_of_their_other_port(
    tmp_path: Path,
) -> None:
    assert configured().admin_http is None  # type: ignore[attr-defined]
    config = configured("--admin-port", "-1", "--admin-http-port", "0")
    assert (config.admin, config.admin_http.port) == (None, 0)  # type: ignore[attr-defined]
    assert configured("--admin-http-port", "9").admin_http.host == "127.0.0.1"  # type: ignore[attr-defined]
    path = written(tmp_path, f"keys: [{{id: a, sha256: {DIGEST}}}]")
    alone = ("--admin-port", "-1", "--admin-http-port", "9", "--admin-host", "0.0.0.0", "--access-file", str(path))
    with pytest.raises(ConfigError, match="--admin-host"):
        configured(*alone)
    with pytest.raises(ConfigError, match="--admin-http-port must be from 0"):
        configured("--admin-http-port", "70000")


def test_the_doors_bounds_are_those_of_the_flags() -> None:
    limits = configured("--max-open-requests", "7", "--default-max-tokens", "9").limits  # type: ignore[attr-defined]
    assert (limits.max_streams, limits.default_max_tokens) == (7, 9)
    with pytest.raises(ConfigError) as refused:
        configured("--max-open-requests", "0", "--default-max-tokens", "0")
    assert len(refused.value.problems) == 2


def test_flags_that_do_not_go_together_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        configured("--tls-cert", "x", "--admin-port", "70000")
    assert len(refused.value.problems) == 2
    with pytest.raises(ConfigError, match="--tls-client-ca needs"):
        configured("--tls-client-ca", "x")


def test_checks_of_a_host_name_the_flag() -> None:
    parser = _parser()
    args = parser.parse_args(["serve"])
    with pytest.raises(ConfigError, match="--http-host ::"):
        check_host("::", "--http-host", True, args)
    check_host("::", "--http-host", False, args)
