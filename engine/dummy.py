"""Random weights for any config, to measure with: as fast to make as to copy."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_PERIOD = 262_139
"""A prime, so that no two rows of a matrix are the same numbers; 1 MiB of float32, which stays in cache."""


class DummySource:
    """Normal numbers with deviation 0.02; norms are `norm` everywhere.

    Owns: the numbers of one period. Each tensor repeats them from a place of its own on. Drawing a number for each
    weight takes 60 times as long as copying one: over a minute for eight billion.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], norm: float, seed: int = 0) -> None:
        self.shapes = shapes
        self._norm = norm
        self._seed = seed
        self._numbers = torch.empty(2 * _PERIOD)
        period = self._numbers[:_PERIOD].normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        self._numbers[_PERIOD:] = period

    def read(self, name: str, into: Tensor, index: int | None = None) -> None:
        """Fill a contiguous tensor; the name and the seed decide with what."""
        if name.endswith("norm.weight"):
            into.fill_(self._norm)
            return
        digest = hashlib.sha256(f"{self._seed} {name} {index}".encode()).digest()
        first = int.from_bytes(digest[:7], "little") % _PERIOD
        numbers = self._numbers[first : first + _PERIOD].to(device=into.device, dtype=into.dtype)
        flat = into.view(-1)
        for start in range(0, len(flat), _PERIOD):
            part = flat[start : start + _PERIOD]
            part.copy_(numbers[: len(part)])
