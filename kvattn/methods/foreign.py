"""A prompt's cache as somebody else assembled it: their stitching, kvattn's decision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kvattn.engine.plan import keep
from kvattn.methods.base import Method


@dataclass(frozen=True)
class ForeignCache(Method):
    """The whole prompt's KV as another blender stitched it, kept bit for bit at the positions that it states, whatever
    they are; the last token alone is computed, at its own place.

    What its tokens saw when they were made nobody states: they are taken to have seen everything before them."""

    name = "foreign-cache"
    source = "the cache that is given"
    keeps = False

    def plan(self, layout, blocks, engine):
        given = replace(blocks.assembled(layout), seen=frozenset(layout.candidates), source="given")
        n = layout.trunk - 1  # the last token asks, so it is computed
        placed = []
        for s in layout.segments:
            stop = min(s.stop, n)
            if s.start < stop:
                placed.append((replace(s, stop=stop), given.part(s.start, stop)))
        positions = torch.cat([given.positions[:n], layout.positions[n:]])
        return replace(keep(layout, engine.layers, placed), positions=positions)
