"""Muon: momentum whose matrices are made orthogonal before each step.

In short trials it formed the copying heads sooner than AdamW. Float32 on purpose: the optimizer that ships with torch
works in bfloat16, which a CPU without such instructions runs ten times slower.

Source: Keller Jordan, https://kellerjordan.github.io/posts/muon/ (the five-step iteration and its
three numbers); the 0.2 * sqrt(larger side) scale, which lets AdamW's rates be used, is from
https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

MOMENTUM = 0.95
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the same row and column spaces. Shapes: (n, short, long)."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def wide(matrix: Tensor) -> Tensor:
    """The matrix, turned so that its rows are the longer side."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


class Muon:
    """The optimizer of the weight matrices. Owns: their momentum."""

    def __init__(self, matrices: Iterable[Parameter], weight_decay: float) -> None:
        self._momentum = {matrix: torch.zeros_like(matrix) for matrix in matrices}
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        groups: dict[tuple[int, ...], list[tuple[Parameter, Tensor]]] = defaultdict(list)
        for matrix, momentum in self._momentum.items():
            assert matrix.grad is not None
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            groups[tuple(sorted(matrix.shape))].append((matrix, matrix.grad.lerp(momentum, MOMENTUM)))
        for group in groups.values():
            steps = orthogonal(torch.stack([wide(update) for _, update in group]))
            for (matrix, _), step in zip(group, steps, strict=True):
                matrix.mul_(1 - rate * self._weight_decay)
                same_way = step if matrix.shape[0] <= matrix.shape[1] else step.T
                matrix.add_(same_way, alpha=-rate * 0.2 * max(matrix.shape) ** 0.5)
