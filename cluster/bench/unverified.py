"""Fetches without digests, to measure what digests cost. Here only: no node can be asked to trust what it fetched.

A context manager turns off the comparison of the compiled copy, and puts stand-ins in the place of the digest functions
that other fetches call; they look at no byte, and answer `TRUSTED`, which the handle of such a fetch says was lent. All
else, generations included, runs as always. Were a fetch to compute its digests in another way, it would end as Corrupt:
no true digest is `TRUSTED`.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from kv_transfer.digest import DIGEST_BYTES

TRUSTED = bytes(DIGEST_BYTES)
DIGESTING = ("kv_transfer.block_copy", "kv_transfer.packing", "kv_transfer.pools")
"""The modules that compute what a fetch compares."""


class _Running:
    """In the place of a digest that grows piece by piece."""

    def update(self, piece: object) -> None:
        """Nothing is looked at."""

    def digest(self) -> bytes:
        """As the handle says."""
        return TRUSTED


@contextmanager
def unverified() -> Iterator[None]:
    """Within it, fetches of handles whose digests are all `TRUSTED` compute none."""
    with ExitStack() as stack:
        for module in DIGESTING:
            if module in sys.modules:
                stack.enter_context(patch(f"{module}.block_digest", lambda block: TRUSTED))
        stack.enter_context(patch("kv_transfer.block_copy.COMPARES_DIGESTS", False))
        stack.enter_context(patch("kv_transfer.block_copy.xxhash", SimpleNamespace(xxh3_128=_Running)))
        yield
