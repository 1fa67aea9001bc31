"""The judge's cache: what plans keep, stitched together layer by layer, and what is computed between it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvattn.engine.devices import Everywhere
from kvattn.engine.plan import KVPlan
from kvattn.engine.queries import Pass, Stop

if TYPE_CHECKING:
    from kvattn.engine.geometry import Geometry


class Stitched:
    """What one plan keeps, as it lies in the prompt: block after block, zeros between them (NaN behind a mask would
    leak), keys turned to where they are read."""

    def __init__(self, plan: KVPlan, geometry: Geometry, room: int) -> None:
        self.rotary, self.blocks, at = geometry.rotary, [], 0
        self.gaps: list[int] = []  # tokens before each block, and behind the last, that have none
        before = plan.positions.clone()
        for kept in sorted((k for k in plan.kept if len(k.block)), key=lambda k: k.start):
            stop, block = kept.start + len(kept.block), kept.block
            before[kept.start : stop] = block.positions
            self.blocks.append([_by_layer(x, geometry.devices) for x in (block.keys, block.values)])
            self.gaps.append(kept.start - at)
            at = stop
        self.gaps.append(len(plan.layout) + room - at)
        moved = not torch.equal(before, plan.positions)
        self.angles = [Everywhere(x) for x in self.rotary.angles(before, plan.positions)] if moved else None

    def write(self, layer: int, *out: Float[Tensor, "heads tokens dim"]) -> None:
        """Fill one layer's keys and values."""
        zero = torch.zeros(1, 1, 1, dtype=out[0].dtype, device=out[0].device)
        gaps = [zero.expand(len(out[0]), n, out[0].shape[2]) for n in self.gaps]
        for which, whole in enumerate(out):
            each = [part for gap, block in zip(gaps, self.blocks, strict=False) for part in (gap, block[which][layer])]
            torch.cat([*each, gaps[-1]], 1, out=whole)
        if self.angles is not None:
            keys, (own, partner) = out[0], (x.on(out[0].device) for x in self.angles)
            at = layer if len(own) > 1 else 0
            self.rotary.turn_(keys[:, : own.shape[2]], own[at], partner[at])


def _by_layer(x: Float[Tensor, "layers heads tokens dim"], devices: Sequence[torch.device]) -> Sequence[Tensor]:
    """Each layer's part, where the layer runs."""
    if len(set(devices)) == 1:
        return x.to(devices[0]).unbind()
    return [part.to(device) for part, device in zip(x, devices, strict=True)]


class PromptLayer(CacheLayerMixin):
    """One layer of a PromptCache: what the plans keep is put in place when the layer first runs, and fresh rows are
    scattered to their prompt indices.

    own:   keys and values [batch, kv heads, tokens, dim] that outlive the layer's run, or None
    begun: whether they hold what the plans keep
    """

    is_sliding = False

    def __init__(self, cache: PromptCache, layer: int, own: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.keys, self.values = own or (None, None)
        self._cache, self._layer, self.begun = cache, layer, False
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the tensors come with the first fresh rows."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the fresh rows and return the keys and values that some query may see."""
        current, passing = self._cache.current, self.keys is None
        span, end = current.span, current.end
        if passing and span == (0, self._cache.tokens):
            return key_states, value_states
        keys, values = self._stitched(key_states)
        if torch.is_grad_enabled():  # backward needs what was read, so nothing is written over
            at = current.index.on(keys.device)[:, None, :, None].expand_as(key_states)
            keys, values = keys.scatter(2, at, key_states), values.scatter(2, at, value_states)
        elif span is not None:
            keys[:, :, span[0] : span[1]] = key_states
            values[:, :, span[0] : span[1]] = value_states
        else:
            at = current.index.on(keys.device)[:, None, :, None].expand_as(key_states)
            keys.scatter_(2, at, key_states)
            values.scatter_(2, at, value_states)
        if not passing:
            self.keys, self.values = keys, values
        if self._layer == current.stop_at:
            raise Stop
        return keys[:, :, :end], values[:, :, :end]

    @torch.no_grad()
    def _stitched(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with what is kept in place; new ones where none outlive the run."""
        if self.keys is not None and self.values is not None and self.begun:
            return self.keys, self.values
        shape = (*like.shape[:2], self._cache.tokens, like.shape[3])
        keys = like.new_empty(shape) if self.keys is None else self.keys
        values = like.new_empty(shape) if self.values is None else self.values
        for row, stitched in enumerate(self._cache.stitched):
            if stitched.blocks:  # else all is computed, and what outlives the run was zero from the start
                stitched.write(self._layer, keys[row], values[row])
        self.begun = True
        return keys, values

    def get_seq_length(self) -> int:
        """Never used for masks: those are made from the plan."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never used for masks: those are made from the plan."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Tokens the layer can hold."""
        return self._cache.tokens


class PromptCache(Cache):
    """KV of a batch of plans of equal length (or of any, where all are filled).

    held: whether the layers' keys and values outlive their run: where somebody wants them, or a pass takes several
          calls. Else each layer's are let go of as soon as its queries have read them, and where all is computed
          nothing is stored.
    bytes: size of the keys and values of all layers, together
    """

    def __init__(self, current: Pass, geometry: Geometry, dtype: torch.dtype, room: int, held: bool) -> None:
        plans = current.plans
        self.current, self.tokens = current, max(len(p.layout) for p in plans) + room
        self.stitched = [Stitched(p, geometry, room) for p in plans]
        self.bytes = (
            2 * geometry.layers * len(plans) * geometry.kv_heads * self.tokens * geometry.head_dim * dtype.itemsize
        )
        self._parts: list[tuple[Tensor, Tensor]] = []  # of layers that follow each other on one device
        if held:
            for device, run in groupby(geometry.devices):
                shape = (len(list(run)), len(plans), geometry.kv_heads, self.tokens, geometry.head_dim)
                keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
                self._parts.append((keys, values))
        own = [pair for keys, values in self._parts for pair in zip(keys, values, strict=True)]
        super().__init__(layers=[PromptLayer(self, i, own[i] if held else None) for i in range(geometry.layers)])

    def fill(
        self, row: int, keys: Float[Tensor, "layers heads n dim"], values: Float[Tensor, "layers heads n dim"]
    ) -> None:
        """Give a plan the keys and values of its first n tokens, which were computed; after that nothing that plans
        keep is put in place."""
        at = 0
        for part in self._parts:
            for mine, given in zip(part, (keys, values), strict=True):
                mine[:, row, :, : given.shape[2]] = given[at : at + len(mine)].to(mine.device)
            at += len(part[0])
        for layer in self.layers:
            layer.begun = True  # type: ignore[attr-defined]

    @property
    def finite(self) -> bool:
        """Whether all that it holds is."""
        return all(bool(torch.isfinite(x).all()) for part in self._parts for x in part)

    def of(self, row: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, kv heads, tokens, dim] of one plan, of all layers on one device."""
        keys, values = ([x[:, row].to(device) for x in each] for each in zip(*self._parts, strict=True))
        return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(keys), torch.cat(values))
