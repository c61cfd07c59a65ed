"""Mixture of experts: each token goes through the few experts that its router scores highest."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.linear import Int8Linear, Linear
from engine.ops import Ops

_grouped_mm = getattr(functional, "grouped_mm", torch._grouped_mm)
"""Public from torch 2.10 on."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer.

    `router` scores all of them for a token, `per_token` are taken, and `normalised` says whether their weights are
    scaled to add up to 1. Expert e computes down[e](activation(gate) * up) with gate and up from gate_up[e].
    `stacked` is the same memory as two tensors: all of `gate_up` and all of `down`; None where experts are quantised.
    Shapes: `stacked` [experts, 2 inner, hidden] and [experts, hidden, inner].
    """

    router: Linear
    gate_up: tuple[Linear | Int8Linear, ...]
    down: tuple[Linear | Int8Linear, ...]
    stacked: tuple[Tensor, Tensor] | None
    per_token: int
    normalised: bool
    activation: str


def mixture(ops: Ops, experts: Experts, hidden: Tensor) -> Tensor:
    """Each token through its own experts; the weights of others are not read. Shapes: [N, hidden] -> the same.

    Invariant: a token's result depends on no other token, up to the rounding of matrix products of other heights: its
    experts are added in the order of its own preference, whoever shares the step.
    """
    weights, chosen = route(experts, hidden)
    if experts.stacked is not None and can_group(experts.stacked):
        computed = _grouped(ops, experts, experts.stacked, hidden, chosen)
    else:
        computed = _one_by_one(ops, experts, hidden, chosen)
    by_token = computed.view(*chosen.shape, hidden.shape[1]).to(weights.dtype)
    return torch.bmm(weights[:, None], by_token)[:, 0].to(hidden.dtype)


def can_group(stacked: tuple[Tensor, Tensor]) -> bool:
    """Whether grouped products are made without the host: bfloat16 on CUDA, rows of whole 16 bytes.

    Elsewhere a step with a mixture waits for the device in each sparse layer, and cannot be captured in a graph.
    """
    return all(
        each.device.type == "cuda" and each.dtype is torch.bfloat16 and each.shape[2] % 8 == 0 for each in stacked
    )


def route(experts: Experts, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights. Shapes: [N, hidden] -> weights and expert numbers, both [N, per_token].

    Probabilities are taken in float32 whatever the model computes in, as all families are trained. Weights have the
    type that experts are added in: float32 for half precision.
    """
    probabilities = torch.softmax(experts.router(hidden), dim=-1, dtype=torch.float32)
    weights, chosen = probabilities.topk(experts.per_token, dim=-1)
    if experts.normalised:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(torch.promote_types(hidden.dtype, torch.float32)), chosen


def _one_by_one(ops: Ops, experts: Experts, hidden: Tensor, chosen: Tensor) -> Tensor:
    """What the chosen experts make of their tokens, expert after expert. Shapes: -> [N * per_token, hidden]."""
    if len(hidden) == 1:
        return torch.cat([_expert(ops, experts, index, hidden) for index in chosen[0].tolist()])
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=len(experts.down)).tolist()
    out, start = hidden.new_empty(len(order), hidden.shape[1]), 0
    for index, count in enumerate(counts):
        if count:
            places = order[start : start + count]
            out[places] = _expert(ops, experts, index, hidden[places // experts.per_token])
            start += count
    return out


def _expert(ops: Ops, experts: Experts, index: int, hidden: Tensor) -> Tensor:
    return experts.down[index](ops.gated(experts.gate_up[index](hidden), experts.activation))


def _grouped(ops: Ops, experts: Experts, stacked: tuple[Tensor, Tensor], hidden: Tensor, chosen: Tensor) -> Tensor:
    """The same through grouped matrix products: how many tokens an expert has stays on the device."""
    gate_up, down = stacked
    numbers, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(numbers, torch.arange(len(down), device=hidden.device), right=True, out_int32=True)
    grouped = hidden[order // experts.per_token]
    inner = ops.gated(_grouped_mm(grouped, gate_up.transpose(1, 2), offs=ends), experts.activation)
    out = torch.empty_like(grouped)
    out[order] = _grouped_mm(inner, down.transpose(1, 2), offs=ends)
    return out
