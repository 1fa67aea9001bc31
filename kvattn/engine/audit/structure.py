"""How a cache is put together: layers and heads in their places, keys and values in theirs, nothing rounded or left
out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvattn.engine.audit.bottom import distance

GRIDS = (  # coarsest first, with the distance that rounding to it may make
    ("float8_e5m2", torch.float8_e5m2, 0.15),
    ("float8_e4m3fn", torch.float8_e4m3fn, 0.08),
    ("bfloat16", torch.bfloat16, 0.006),
    ("float16", torch.float16, 0.001),
)
FEW = 130  # magnitudes that a layer of an 8-bit format with a scale of its own has at most
MANY = 512  # numbers that a layer has to have for that to be seen


@dataclass(frozen=True)
class Rounded:
    """The grid that all numbers of some layers lie on."""

    name: str
    off: float
    layers: tuple[int, ...]


def rounded(
    keys: Float[Tensor, "layers heads tokens dim"], values: Tensor, honest: tuple[Tensor, Tensor]
) -> Rounded | None:
    """Whether layers hold numbers of a coarser format than their dtype; `honest` are the model's own keys and values,
    which repeat themselves where tokens do."""
    dtype = keys.dtype
    mine = torch.finfo(dtype).eps
    by_layer = [torch.cat([k.flatten(), v.flatten()]).float() for k, v in zip(keys, values, strict=True)]
    by_layer = [x[torch.isfinite(x) & (x != 0)] for x in by_layer]
    for name, grid, off in GRIDS:
        if torch.finfo(grid).eps > mine:
            on = tuple(i for i, x in enumerate(by_layer) if len(x) >= 32 and bool((x.to(grid).float() == x).all()))
            if on:
                return Rounded(name, off, on)
    own = [max(_magnitudes(x[i].to(dtype)) for x in honest) for i in range(len(keys))]
    few = [i for i, kv in enumerate(zip(keys, values, strict=True)) if 2 < max(map(_magnitudes, kv)) <= FEW < own[i]]
    return Rounded("an 8-bit format with a scale", 0.08, tuple(few)) if few else None


def _magnitudes(x: Tensor) -> int:
    return len(x.abs().unique()) if x.numel() >= MANY else MANY


@dataclass(frozen=True)
class Found:
    """What a layer's tensor really is: the reference's keys or values of a layer, its heads in an order, its rows late.

    late: rows that stand so many places after their own
    """

    values: bool
    layer: int
    heads: tuple[int, ...]
    late: int = 0


def origin(
    x: Float[Tensor, "heads rows dim"],
    own_layer: int,
    keys: Tensor,
    values: Tensor,
    ok: Bool[Tensor, " rows"],
    near: Tensor,
) -> Found | None:
    """Where a tensor of `own_layer` comes from, among the keys and values [layers, heads, rows, dim] of a reference."""
    layers, heads, n = keys.shape[0], keys.shape[1], keys.shape[2]
    for which, ref in ((False, keys), (True, values)):
        for layer in range(layers):
            own = ref[layer]
            if bool((distance(x, own)[ok] <= near[layer]).float().mean() > 0.9):
                return Found(which, layer, tuple(range(heads)))
            cross = (x[:, None] - own[None]).norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-12)  # [head, head, row]
            best = cross[..., ok].median(-1).values.min(1)
            order = tuple(best.indices.tolist())
            if sorted(order) == list(range(heads)) and bool((distance(x, own[list(order)])[ok] <= near[layer]).all()):
                return Found(which, layer, order)
    for which, ref in ((False, keys[own_layer]), (True, values[own_layer])):
        for late in [d for k in range(1, min(n - 2, 64)) for d in (k, -k)]:
            a, b = (x[:, late:], ref[:, :-late]) if late > 0 else (x[:, :late], ref[:, -late:])
            good = ok[late:] if late > 0 else ok[:late]
            if int(good.sum()) > 2 and bool((distance(a, b)[good] <= near[own_layer]).float().mean() > 0.9):
                return Found(which, own_layer, tuple(range(heads)), late)
    return None


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted whole numbers as [start, stop) runs."""
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(cuts) if a < b]
