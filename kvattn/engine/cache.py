"""The judge's cache: one preallocated tensor a layer, in prompt order, and the state of one forward pass over it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from einops import repeat
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvattn.engine.devices import Everywhere
from kvattn.engine.plan import KVPlan
from kvattn.engine.reach import link_numbers

if TYPE_CHECKING:
    from kvattn.engine.capture import Recorder
    from kvattn.engine.geometry import Geometry


class Stop(Exception):
    """Ends a forward pass early: nothing further up was asked for."""


class Pass:
    """Where the queries of the current forward call stand and what they may see.

    at:      [batch, queries], prompt index of every query, on the CPU; it shrinks when tokens leave at a layer
    index:   the same, wherever it is wanted; so are segment and positions [batch, tokens]
    span:    the queries as a contiguous range, if they are one
    end:     keys up to here can be seen by some query
    stop_at: the layer whose keys and values end the pass, or None

    What steers the pass is known on the CPU, so that no layer waits for its device.
    """

    def __init__(self, plans: list[KVPlan], windows: tuple[int | None, ...], room: int) -> None:
        self.plans, self.windows = plans, windows
        total = len(plans[0].layout) + room
        self.segment = Everywhere(torch.stack([_extended(p.layout.segment_of, total, 0) for p in plans]))
        where = torch.stack([_extended(p.positions, total, 1) for p in plans])
        self.positions, self._spread = Everywhere(where), (where.cummax(1).values - where.cummin(1).values).amax(0)
        reach = plans[0].reach
        self.adapter = None if reach is None else reach.adapter  # plans of a batch have the same
        if reach is not None:
            acts = [_extended(p.reach.tokens, total, 0) for p in plans if p.reach is not None]
            self.reach = Everywhere(torch.stack(acts))  # [batch, tokens]
            self.links = Everywhere(torch.stack([_extended(link_numbers(p.layout), total, 0) for p in plans]))
        self.layered = any(p.visibility.allowed.dim() > 2 for p in plans)
        self.plain = all(p.visibility.causal for p in plans)
        rules = [p.visibility for p in plans]
        alike = all(torch.equal(r.allowed, rules[0].allowed) for r in rules)
        self._rules = rules[:1] if alike else rules
        self.at: Int[Tensor, "batch queries"] = torch.zeros(len(plans), 0, dtype=torch.long)
        self.index = Everywhere(self.at)
        self.span: tuple[int, int] | None = None
        self.end = 0
        self.recorder: Recorder | None = None
        self.stop_at: int | None = None
        self._masks: dict[tuple, Tensor | None] = {}

    def stand(self, at: Int[Tensor, "batch queries"]) -> None:
        """Set the prompt indices of the queries, given on the CPU."""
        self.at, self.index, self._masks = at, Everywhere(at), {}
        first, count = int(at[0, 0]), at.shape[1]
        self.span = (first, first + count) if bool((at == torch.arange(first, first + count)).all()) else None
        self.end = int(at.max()) + 1

    def mask(self, layer: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Additive mask [batch or 1, heads or 1, queries, keys], or None where the plain causal kernel serves."""
        window = self.windows[layer]
        key = (layer if self.layered else 0, window, keys, device)
        if key not in self._masks:
            if self.layered:  # the other layers' masks are not asked for again; those of all would fill the memory
                self._masks.clear()
            self._masks[key] = self._make(layer, window, keys, dtype, device)
        return self._masks[key]

    def _within(self, window: int | None, keys: int) -> bool:
        """Whether no key is too far from any query, by position, for the window to cut."""
        return window is None or int(self._spread[keys - 1]) < window

    def _make(self, layer: int, window: int | None, keys: int, dtype: torch.dtype, device) -> Tensor | None:
        whole = self.span == (0, keys) or (self.at.shape[1] == 1 and self.span == (keys - 1, keys))
        if self.plain and whole and self._within(window, keys):
            return None
        index, segment = self.index.on(device), self.segment.on(device)
        open_ = (torch.arange(keys, device=device) <= index[:, :, None])[:, None]
        if not self.plain:
            rules = torch.stack([rule.at(layer) for rule in self._rules]).to(device)
            rules = rules.expand(len(self.plans), -1, -1, -1)
            batch = torch.arange(len(self.plans), device=device)[:, None]
            rows = rules.transpose(1, 2)[batch, torch.gather(segment, 1, index)]  # [b, q, h, segments]
            seen = torch.gather(rows, 3, segment[:, None, None, :keys].expand(-1, rows.shape[1], rows.shape[2], -1))
            open_ = open_ & seen.transpose(1, 2)
        if window is not None:
            positions = self.positions.on(device)
            here = torch.gather(positions, 1, index)
            open_ = open_ & (here[:, :, None] - positions[:, None, :keys] < window)[:, None]
        out = torch.zeros(open_.shape, dtype=dtype, device=device)
        return out.masked_fill_(~open_, float("-inf"))


def _extended(values: Tensor, total: int, step: int) -> Tensor:
    """`values` continued to `total` entries from its last one: the same again, or counting up."""
    more = total - len(values)
    if more == 0:
        return values
    tail = values[-1] + step * torch.arange(1, more + 1) if step else values[-1:].repeat(more)
    return torch.cat([values, tail])


class Exits:
    """Lets tokens leave a forward call at the layer where their KV is kept.

    depths: [batch, tokens], through how many layers each token of the prompt is computed, on the CPU
    first:  the first layer at which some token leaves; `layers` where none does before the end
    """

    def __init__(self, current: Pass, depths: Tensor, layers: int) -> None:
        self.current, self.depths = current, depths
        here = torch.gather(depths, 1, current.at)
        self.layers = {x for x in here.unique().tolist() if 0 < x < layers}
        self.first = min(self.layers, default=layers)
        self.stayed = torch.arange(current.at.shape[1]).expand_as(current.at)

    def before(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states [batch, tokens, width] that enter a layer, of all that came so far; the pass then stands on
        their tokens. Raises Stop where none enters."""
        if layer not in self.layers:
            return hidden
        entering = torch.gather(self.depths, 1, self.current.at) > layer
        counts = entering.sum(1)
        if not bool((counts == counts[0]).all()):
            raise RuntimeError("plans of a batch must let equally many tokens leave at each layer")
        if not counts[0]:
            raise Stop
        place = entering.nonzero()[:, 1].view(len(entering), -1)
        self.stayed = torch.gather(self.stayed, 1, place)
        self.current.stand(torch.gather(self.current.at, 1, place))
        return _pick(hidden, place)

    def hook(self, layer: int, _module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The forward pre-hook of a decoder layer from `first` on."""
        hidden = self.before(layer, args[0])
        angles, current = kwargs["position_embeddings"], self.current
        kwargs["position_embeddings"] = (  # cosines and sines, or complex numbers (Llama 4)
            _pick(angles, self.stayed) if isinstance(angles, Tensor) else tuple(_pick(x, self.stayed) for x in angles)
        )
        kwargs["position_ids"] = torch.gather(current.positions.own, 1, current.at).to(hidden.device)
        return (hidden, *args[1:]), kwargs


def _pick(x: Tensor, place: Tensor) -> Tensor:
    """Rows `place` [batch, kept] of x [batch or 1, tokens, width]."""
    x, place = x.expand(len(place), *x.shape[1:]), place.to(x.device)
    return torch.gather(x, 1, repeat(place, "batch token -> batch token width", width=x.shape[-1]))


class PromptLayer(CacheLayerMixin):
    """One layer of a PromptCache: fresh rows are scattered to their prompt indices."""

    is_sliding = False

    def __init__(self, current: Pass, layer: int, keys: Tensor | None, values: Tensor | None) -> None:
        super().__init__()
        self.keys, self.values, self._pass, self._layer = keys, values, current, layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the tensors exist already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the fresh rows and return the keys and values that some query may see."""
        if self.keys is None or self.values is None:
            return key_states, value_states
        span, end = self._pass.span, self._pass.end
        if torch.is_grad_enabled():  # backward needs what was read, so nothing is written over
            at = self._pass.index.on(self.keys.device)[:, None, :, None].expand_as(key_states)
            self.keys, self.values = self.keys.scatter(2, at, key_states), self.values.scatter(2, at, value_states)
        elif span is not None:
            self.keys[:, :, span[0] : span[1]] = key_states
            self.values[:, :, span[0] : span[1]] = value_states
        else:
            at = self._pass.index.on(self.keys.device)[:, None, :, None].expand_as(key_states)
            self.keys.scatter_(2, at, key_states)
            self.values.scatter_(2, at, value_states)
        if self._layer == self._pass.stop_at:
            raise Stop
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Never used for masks: those are made from the plan."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never used for masks: those are made from the plan."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Tokens the layer can hold."""
        return -1 if self.keys is None else self.keys.shape[2]


class PromptCache(Cache):
    """KV of a batch of plans of equal length, zero-filled (NaN behind a mask would leak), kept blocks in place.

    With `passthrough`, nothing is stored: for a dense pass in one call whose cache nobody wants.
    """

    def __init__(self, current: Pass, geometry: Geometry, dtype: torch.dtype, room: int, passthrough: bool) -> None:
        plans = current.plans
        self._parts: list[tuple[Tensor, Tensor]] = []  # of layers that follow each other on one device
        if not passthrough:
            for device, run in groupby(range(geometry.layers), key=lambda layer: geometry.devices[layer]):
                some = list(run)
                self._parts.append(_stitched(plans, geometry, slice(some[0], some[-1] + 1), dtype, device, room))
        held = [pair for keys, values in self._parts for pair in zip(keys, values, strict=True)]
        each = held or [(None, None)] * geometry.layers
        super().__init__(layers=[PromptLayer(current, i, *pair) for i, pair in enumerate(each)])

    @property
    def finite(self) -> bool:
        """Whether all that it holds is."""
        return all(bool(torch.isfinite(x).all()) for part in self._parts for x in part)

    def of(self, row: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, kv heads, tokens, dim] of one plan, of all layers on one device."""
        keys, values = ([x[:, row].to(device) for x in each] for each in zip(*self._parts, strict=True))
        return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(keys), torch.cat(values))

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(x.numel() * x.element_size() for part in self._parts for x in part)


def _stitched(
    plans: list[KVPlan], geometry: Geometry, layers: slice, dtype: torch.dtype, device: torch.device, room: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [layers, batch, kv heads, tokens, dim] of some layers on their device, kept blocks in place."""
    count = layers.stop - layers.start
    shape = (count, len(plans), geometry.kv_heads, len(plans[0].layout) + room, geometry.head_dim)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    rotary = geometry.rotary.of(layers)
    for row, plan in enumerate(plans):
        for kept in plan.kept:
            span, block = slice(kept.start, kept.start + len(kept.block)), kept.block
            own = block.keys[layers].to(device)
            rotary.turn(own, block.positions, plan.positions[span], out=keys[:, row, :, span])
            values[:, row, :, span] = block.values[layers].to(device)
    return keys, values
