"""Low-rank patches: what a block absorbs from its neighbours, factored from one dense pass, reused in every order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVBlock, KVPlan, keep
from kvattn.methods.base import Method


@dataclass(frozen=True)
class LowRankPatch(Method):
    """naive-linked plus, on each candidate, the low-rank part of its drift under one order, added after the move under
    every order.

    The dense pass under that order (the candidates' own) is charged to the first plan of each question.

    Parameters
    ----------
    rank : m, kept for each layer, keys and values apart.
    layers : which layers get the patch: "all", "deep" (the upper half) or "shallow" (the lower half).
    """

    rank: int = 8
    layers: Literal["all", "deep", "shallow"] = "all"

    name = "low-rank-patch"
    source = "the idea of Kamera (arXiv 2606.23581)"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        patches, spent = self._patches(layout, blocks, engine)
        placed = []
        for s, candidate in layout.shown():
            there = layout.positions[s.start : s.stop]
            patch = patches[candidate].moved(there, engine.rotary)
            block = blocks.execution(candidate).moved(there, engine.rotary)
            block = block.corrected(patch.keys, patch.values, patch.seen)
            placed.append((s, replace(block, source=f"{block.source}, patched")))
        return replace(keep(layout, engine.layers, placed), probe_token_layers=spent)

    def _patches(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> tuple[dict[str, KVBlock], int]:
        """By candidate id, the factored drift as a block, and what finding it cost this time."""
        key = ("patch", self.rank, self.layers, layout.names)
        if key in blocks.memo:
            return blocks.memo[key], 0
        reference = blocks.reference(layout)
        run = engine.encode(reference)
        wanted = torch.zeros(engine.layers, dtype=torch.bool)
        half = engine.layers // 2
        wanted[{"all": slice(None), "deep": slice(half, None), "shallow": slice(0, half)}[self.layers]] = True
        made = {}
        for slot, (s, candidate) in enumerate(reference.shown()):
            fresh = run.block(s, frozenset(reference.candidates[: slot + 1]))
            stale = blocks.execution(candidate).moved(fresh.positions, engine.rotary)
            made[candidate] = replace(
                fresh,
                keys=low_rank(fresh.keys - stale.keys, self.rank, wanted),
                values=low_rank(fresh.values - stale.values, self.rank, wanted),
            )
        blocks.memo[key] = made
        return made, run.cost.token_layers


def low_rank(change: Tensor, rank: int, wanted: Tensor) -> Tensor:
    """The best rank-m approximation of each wanted layer's [tokens, heads x dim] matrix; other layers get zero."""
    flat = rearrange(change.float(), "layer head token dim -> layer token (head dim)")
    out = torch.zeros_like(flat)
    for layer in wanted.nonzero()[:, 0].tolist():
        u, s, v = torch.linalg.svd(flat[layer], full_matrices=False)
        out[layer] = (u[:, :rank] * s[:rank]) @ v[:rank]
    return rearrange(out, "layer token (head dim) -> layer head token dim", head=change.shape[1]).to(change.dtype)
