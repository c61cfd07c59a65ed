"""A real service, its nodes processes of their own, with the embedded model."""

from collections.abc import Iterator

import pytest

from tests.service.running import Running, running


@pytest.fixture(scope="module")
def pair() -> Iterator[Running]:
    """One prefill and one decode node. Tests leave it as they found it: two nodes, nothing open."""
    with running("--prefill", "1", "--decode", "1") as service:
        yield service
