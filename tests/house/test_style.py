"""Length, words, docstrings: what a reader may rely on in every file."""

import ast
import re
import subprocess
from collections.abc import Iterator

from tests.house.sources import PACKAGES, ROOT, Source, sources

MAX_LINES = 400
ALL = (*PACKAGES, "tests", "experiments", ".ci")
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common)($|_)|(Util|Helper|Manager)s?$")


def test_no_file_is_longer_than_a_reader_bears() -> None:
    long = {str(s.path): n for s in sources(*ALL) if not s.is_generated and (n := s.text.count("\n")) > MAX_LINES}
    assert long == {}


def test_nothing_is_called_utility_helper_or_manager() -> None:
    for source in sources(*ALL):
        names = {node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}
        for name in (*source.path.with_suffix("").parts, *names):
            assert not FORBIDDEN_NAMES.search(name), f"{source.path}: {name}"


def public(source: Source) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes and functions of a module, and the public methods of its public classes."""
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                functions = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
                yield from (n for n in functions if not n.name.startswith("_") and not n.decorator_list)


def test_every_public_name_says_what_it_is() -> None:
    silent = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources(*PACKAGES)
        if not source.is_generated
        for node in public(source)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(s.path) for s in sources(*PACKAGES) if s.text and not s.is_generated and not ast.get_docstring(s.tree)
    ]
    assert silent == []


def committed() -> list[str]:
    """Text files that git holds or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if not name.endswith((".safetensors", "tokenizer.json")) and (ROOT / name).is_file()]


def test_no_lock_file_is_committed() -> None:
    assert not [
        name for name in committed() if re.search(r"(^|/)(uv|poetry|Pipfile|pdm)\.lock$|requirements.*\.txt$", name)
    ]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(r"/(?:home|Users|root|work|opt)/[\w.-]+")
    wrong = []
    for name in committed():
        if name != "tests/house/test_style.py":
            wrong += [f"{name}: {found}" for found in places.findall((ROOT / name).read_text(errors="replace"))]
    assert wrong == []


def test_no_code_says_that_it_is_unfinished() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    wrong = [str(s.path) for s in sources(*PACKAGES) if marks.search(s.text)]
    assert wrong == []
