"""Writes what is made from the table: `python -m cluster.metrics.generate`; `--check` only compares."""

import argparse
import json
import sys
from pathlib import Path

from cluster.metrics.board import board
from cluster.metrics.page import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "metrics.md"
COMMAND = "python -m cluster.metrics.generate"
BOARD = ROOT / "helm" / "penstock" / "dashboards" / "penstock.json"


def made() -> dict[Path, str]:
    """Every file with its text."""
    return {PAGE: markdown(), BOARD: json.dumps(board(), indent=1, ensure_ascii=False) + "\n"}


def main() -> int:
    """1 where `--check` finds a file that is not the one that the table gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    wrong = [path for path, text in made().items() if not path.is_file() or path.read_text() != text]
    if asked.check:
        for path in wrong:
            print(f"{path.relative_to(ROOT)} is not what the table gives: {COMMAND}", file=sys.stderr)
        return 1 if wrong else 0
    for path in wrong:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
