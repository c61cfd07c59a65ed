"""YAML as a person means it: words stay words, every value has its line, and nothing strange is taken."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.config_yaml import MAX_FILE_BYTES, nearest, read_document
from core.errors import ConfigError


def parsed(tmp_path: Path, text: str | bytes) -> object:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_document(path)


def test_only_true_and_false_are_booleans_and_no_word_becomes_a_number(tmp_path: Path) -> None:
    text = "a: off\nb: 1:30\nc: 2027-01-01\nd: yes\ne: 0x10\nf: 1_000\ng: .inf\nh: 1e3\ni: -7\nj: true\nk: ~\n12: x\n"
    assert parsed(tmp_path, text).value == {  # type: ignore[attr-defined]
        "a": "off",
        "b": "1:30",
        "c": "2027-01-01",
        "d": "yes",
        "e": "0x10",
        "f": "1_000",
        "g": ".inf",
        "h": 1000.0,
        "i": -7,
        "j": True,
        "k": None,
        "12": "x",
    }


def test_every_value_has_its_line_and_what_is_missing_that_of_what_is_around_it(tmp_path: Path) -> None:
    document = parsed(tmp_path, "a:\n  - b: 1\n    c: 2\n  - {d: 3}\n")
    lines = {"a[0].b": 2, "a[0].c": 3, "a[1].d": 4, "a[1].nope": 4, "a[9]": 1, "z": 1}
    for at, line in lines.items():
        assert document.where(at).endswith(f", line {line}"), at  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "line 2: b.c stands there twice"),
        ("a: &x [1]\nb: *x", "line 2: b: anchors"),
        ("a: &x [*x]", "anchors"),
        ("[1, 2]: x", "plain text"),
        ("a: !!python/object/apply:os.system [x]", "not YAML"),
        ("a: !secret x", "not YAML"),
        ("a: 1\n--- \nb: 2", "not YAML"),
        (b"a: \xff", "not UTF-8"),
        ("a: [" * 2000, "not YAML"),
        ("a: " + "x" * MAX_FILE_BYTES, "at most"),
    ],
)
def test_what_is_strange_is_refused(text: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(tmp_path, text)
    assert all(str(tmp_path) in problem for problem in refused.value.problems)
    assert says in refused.value.problems[0]


def test_any_bytes_are_a_document_or_a_problem(tmp_path: Path) -> None:
    rng, alphabet = random.Random(5), b"ab01:-[]{},&*!|>'\"#%@`\n \t~<?\\\xc3\xa4\xff"
    for _ in range(500):
        data = bytes(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        with suppress(ConfigError):
            parsed(tmp_path, data)


def test_a_near_word_is_proposed_and_few_others_are_listed() -> None:
    assert nearest("blocksize", ["block-size", "host"]) == "; did you mean 'block-size'?"
    assert nearest("zzz", ["a", "b"]) == "; there are a, b"
    assert nearest("zzz", map(str, range(99))) == ""
