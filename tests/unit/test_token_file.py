"""The cluster token on file: made once, read by its owner only, and never said back."""

import io
import os
import stat
from pathlib import Path

import pytest

from cluster.live.token_file import is_open, kept_token, read_token, token_from
from core.errors import ConfigError


def stat_of(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 65, 0, 0, 0))


def test_a_token_is_made_where_there_is_none_and_kept_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        token = kept_token(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_token(path) == read_token(path) == token_from(str(path)) == token
    assert len(token.secret) == 32


def test_a_file_that_others_can_get_at_is_refused_with_its_mode_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "token"
    kept_token(path)
    for mode in (0o640, 0o604, 0o660, 0o602):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"has mode {mode:04o}: others .* chmod 600"):
            kept_token(path)


@pytest.mark.parametrize(
    ("mode", "owner", "refused"),
    [
        (0o600, 7, False),
        (0o400, 7, False),
        (0o440, 7, True),
        (0o440, 0, False),
        (0o460, 0, True),
        (0o444, 0, True),
        (0o404, 7, True),
    ],
)
def test_a_mounted_secret_may_reach_its_group_and_nobody_else(mode: int, owner: int, refused: bool) -> None:
    assert is_open(stat_of(mode, owner), me=7) is refused


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + " cd", "\u00e9" * 64])
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    for read in (lambda: token_from(str(path)), lambda: token_from("-", io.BytesIO(text.encode()))):
        with pytest.raises(ConfigError, match="must hold 64 hexadecimal digits") as found:
            read()
        assert not text or text not in str(found.value)


def test_standard_input_gives_a_token_with_or_without_a_line_end() -> None:
    for end in (b"", b"\n", b"\r\n"):
        assert token_from("-", io.BytesIO(b"ab" * 32 + end)).secret == bytes.fromhex("ab" * 32)


def test_a_file_that_is_not_there_or_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--cluster-token-file .*nowhere cannot be read: No such file"):
        token_from(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"--cluster-token-file .*x/y cannot be written: No such file"):
        kept_token(tmp_path / "x" / "y")
