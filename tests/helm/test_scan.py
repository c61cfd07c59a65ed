"""A security scanner over everything that the examples render: what it finds is what docs/operations.md explains."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.helm.charts import EXAMPLES, render, values_of
from tests.house.sources import ROOT

pytestmark = [pytest.mark.helm, pytest.mark.slow, pytest.mark.timeout(600)]

FIRST_CELL = re.compile(r"^\| ([^|]*)\|", re.MULTILINE)
NUMBERS = re.compile(r"\((\d+(?:, \d+)*)\)")


def checkov() -> str:
    """The scanner's executable, which lives in an environment of its own: CHECKOV, or of the path. Skips without."""
    found = shutil.which(os.environ.get("CHECKOV", "checkov"))
    if found is None:
        pytest.skip("checkov is not installed: set CHECKOV")
    return found


ONLY = {
    "8": r"Pod\.prod\.rel-penstock-test",
    "9": r"Pod\.prod\.rel-penstock-test",
    "38": r"Deployment\.prod\.rel-penstock-gateway",
}
"""Where a check may fail, and nowhere else."""


def scanned(folder: Path) -> tuple[int, Counter[str]]:
    """How many checks passed, and which failed how often."""
    command = [checkov(), "-d", str(folder), "--framework", "kubernetes", "--compact", "--quiet", "--skip-download"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    failed = Counter[str]()
    for each in report["results"]["failed_checks"]:
        number = each["check_id"].removeprefix("CKV_K8S_")
        failed[number] += 1
        assert re.fullmatch(ONLY.get(number, ".*"), each["resource"]), f"{number} at {each['resource']}"
    return int(report["summary"]["passed"]), failed


def test_what_the_scanner_finds_is_explained_one_by_one_and_nothing_is_explained_that_it_does_not_find(
    tmp_path: Path,
) -> None:
    for example in EXAMPLES:
        if example != "defaults":
            objects = render(values_of(example))
            (tmp_path / f"{example}.yaml").write_text(yaml.safe_dump_all(objects))
    num_passed, failed = scanned(tmp_path)
    page = (ROOT / "docs/operations.md").read_text()
    section = page.partition("## What a scan finds")[2].partition("\n## ")[0]
    named = [numbers for cell in FIRST_CELL.findall(section) for numbers in NUMBERS.findall(cell)]
    explained = {number for numbers in named for number in numbers.split(", ")}
    assert failed.keys() == explained, failed
    assert f"{num_passed:,} checks passed, {failed.total()} not" in section, (num_passed, failed)
