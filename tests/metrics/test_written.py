"""The page and the board are those that the table gives, and every query of the board has something to ask for."""

import json

import pytest

from cluster.metrics.board import board, names_in_board
from cluster.metrics.generate import COMMAND, made
from cluster.metrics.table import METRICS, Kind

BUCKETS = ("_bucket", "_sum", "_count")


@pytest.mark.parametrize("path", made(), ids=lambda path: path.name)
def test_what_is_written_from_the_table_is_what_the_table_gives(path) -> None:  # type: ignore[no-untyped-def]
    assert path.read_text() == made()[path], f"run: {COMMAND}"


def test_the_board_asks_for_nothing_that_is_not_told() -> None:
    told = {row.sample for row in METRICS.values() if row.kind is not Kind.HISTOGRAM}
    told |= {row.name + ending for row in METRICS.values() if row.kind is Kind.HISTOGRAM for ending in BUCKETS}
    assert names_in_board() <= told


def test_the_board_has_panels_that_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(json.dumps(board()))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_names_say_their_unit_and_are_spelt_as_prometheus_wants() -> None:
    for row in METRICS.values():
        assert row.name.startswith(("penstock_", "vllm:")) and not row.name.endswith("_total"), row.name
        assert (row.help.endswith((".", "…")) and row.unit) or "info" in row.name, row.name
        if row.kind is Kind.HISTOGRAM and row.unit == "seconds":
            assert row.name.endswith("_seconds")
