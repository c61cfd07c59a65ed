"""What is written twice agrees: pages and code, stubs and protos, README and Makefile, extras and pins."""

import re
import subprocess
import sys
import tomllib

import pytest

from core import lifecycle
from tests.house.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_page_of_life_cycles_is_the_one_that_the_tables_give() -> None:
    assert (ROOT / "docs/lifecycle.md").read_text() == lifecycle.markdown(), "run: make lifecycle"


@pytest.mark.parametrize("page", ["README.md", "docs/gpu.md", "experiments/README.md", ".ci/run"])
def test_every_make_command_of_a_page_is_a_target(page: str) -> None:
    named = set(re.findall(r"(?:^|`)\s*make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named <= TARGETS


def test_the_readme_names_the_two_first_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_every_target_is_listed_by_make_alone() -> None:
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^ {2}make ([a-z-]+)", listed.stdout, re.MULTILINE)) == TARGETS


def test_every_page_that_a_page_links_to_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_the_generated_stubs_are_those_of_the_protos() -> None:
    command = [sys.executable, "-m", "cluster.api.generate", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def names(requirements: list[str]) -> set[str]:
    """The normalised names of requirement lines."""
    found = (re.match(r"[\w.-]+", line) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}


def test_every_dependency_of_an_installation_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in pins), "names and versions only"
    assert names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]) <= names(pins)


def test_the_extras_are_those_that_were_promised() -> None:
    assert set(PROJECT["optional-dependencies"]) == {
        "cuda",
        "cuda12",
        "k8s",
        "otel",
        "tune",
        "nixl",
        "smg",
        "hf",
        "dev",
    }
