"""Where the queries of a forward call stand, what they may see, and where they leave."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvattn.engine.devices import Everywhere
from kvattn.engine.kernel import Scoring
from kvattn.engine.plan import KVPlan
from kvattn.engine.reach import link_numbers

if TYPE_CHECKING:
    from kvattn.engine.capture import Recorder

FEWEST, MOST = 64, 256  # queries of a piece: fewer cost more in calls than they spare in scores, more spare less


class Stop(Exception):
    """Ends a forward pass early: nothing further up was asked for."""


class Piece(NamedTuple):
    """Queries that are attended to together.

    queries: which of the call's
    chosen:  the keys that some of them may see, as an index tensor; None for all before `end`
    mask:    additive [1, heads or 1, queries, keys]
    """

    queries: slice
    chosen: Int[Tensor, " keys"] | None
    end: int
    mask: Tensor

    def of(self, x: Float[Tensor, "batch heads tokens dim"]) -> Float[Tensor, "batch heads keys dim"]:
        """Its part of keys or values."""
        return x[:, :, : self.end] if self.chosen is None else x.index_select(2, self.chosen)


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
        total = max(len(p.layout) for p in plans) + room
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
        # Rows that see alike: then one mask serves the whole batch.
        told = [] if self.plain else [self.segment.own]
        told += [where] if any(windows) else []
        self._told_alike = (self.plain or alike) and all(bool((x == x[:1]).all()) for x in told)
        self.at: Int[Tensor, "batch queries"] = torch.zeros(len(plans), 0, dtype=torch.long)
        self.index = Everywhere(self.at)
        self.span: tuple[int, int] | None = None
        self.end = 0
        self.recorder: Recorder | None = None
        self.stop_at: int | None = None
        self._masks: dict[tuple, Any] = {}

    def stand(self, at: Int[Tensor, "batch queries"]) -> None:
        """Set the prompt indices of the queries, given on the CPU."""
        self.at, self.index, self._masks = at, Everywhere(at), {}
        first, count = int(at[0, 0]), at.shape[1]
        self.span = (first, first + count) if bool((at == torch.arange(first, first + count)).all()) else None
        self.end = int(at.max()) + 1
        self._alike = self._told_alike and bool((at == at[:1]).all())

    def pieces(self, layer: int, dtype: torch.dtype, device: torch.device) -> list[list[Piece]] | None:
        """The queries in pieces, row by row of the batch (one list for all rows where they see alike), or None where
        the plain causal kernel serves."""
        return self._once((device,), layer, lambda: self._make(layer, dtype, device))

    def attend(self, layer: int, how: Scoring, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What every query gets [batch, heads, queries, dim], piece by piece."""
        pieces = self.pieces(layer, query.dtype, query.device)
        if pieces is None:
            return how.attend(query, key, value, None)
        rows = [slice(None)] if len(pieces) == 1 else [slice(b, b + 1) for b in range(len(query))]
        each = [
            torch.cat([how.attend(query[row, :, x.queries], x.of(key[row]), x.of(value[row]), x.mask) for x in some], 2)
            for row, some in zip(rows, pieces, strict=True)
        ]
        return each[0] if len(each) == 1 else torch.cat(each)

    def rule(self, layer: int, place: Everywhere, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Additive mask [batch, heads or 1, wanted, keys] of the call's queries at `place` [batch, wanted]."""

        def make() -> Tensor:
            at = torch.gather(self.index.on(device), 1, place.on(device))
            return self._mask(layer, slice(None), at, torch.arange(self.end, device=device), dtype)

        return self._once((device, place), layer, make)

    def _once(self, what: tuple, layer: int, make: Callable[[], Any]) -> Any:
        """What is made for all layers of one rule and window."""
        key = (layer if self.layered else 0, self.windows[layer], *what)
        if key not in self._masks:
            if self.layered:  # the other layers' masks are not asked for again; those of all would fill the memory
                self._masks.clear()
            self._masks[key] = make()
        return self._masks[key]

    def _make(self, layer: int, dtype: torch.dtype, device: torch.device) -> list[list[Piece]] | None:
        count, window = self.at.shape[1], self.windows[layer]
        within = window is None or int(self._spread[self.end - 1]) < window  # no key is too far from any query
        if self.plain and within and self.span in ((0, self.end), (self.end - 1, self.end)):
            return None
        if count < FEWEST:
            rows = slice(0, 1) if self._alike else slice(None)
            keys = torch.arange(self.end, device=device)
            mask = self._mask(layer, rows, self.index.on(device)[rows], keys, dtype)
            return [[Piece(slice(None), None, self.end, mask)]]
        each = range(1 if self._alike else len(self.at))
        return [self._cut(slice(row, row + 1), layer, dtype, device) for row in each]

    def _cut(self, row: slice, layer: int, dtype: torch.dtype, device: torch.device) -> list[Piece]:
        """One row's pieces. They end where the rule changes and hold FEWEST to MOST queries where they can; keys that
        no query of a piece may see are left out of it."""
        at, segment, positions = self.at[row][0], self.segment.own[row][0], self.positions.own[row][0]
        rule = None if self.plain else self._rule(layer, row)[0].any(0)
        edges = []
        if rule is not None:
            seeing = rule[segment[at]]
            edges = ((seeing[1:] != seeing[:-1]).any(1).nonzero()[:, 0] + 1).tolist()
        cuts = [0]
        for edge in (*edges, len(at)):
            if (count := edge - cuts[-1]) >= FEWEST or edge == len(at):
                parts = -(-count // MOST)
                cuts += [edge - count + count * (i + 1) // parts for i in range(parts)]
        out = []
        for first, last in pairwise(cuts):
            own = at[first:last]
            end = int(own[-1]) + 1
            seen = torch.ones(end, dtype=torch.bool) if rule is None else rule[segment[own]].any(0)[segment[:end]]
            if (window := self.windows[layer]) is not None:
                seen &= positions[:end] > positions[own].min() - window
            keys = seen.nonzero()[:, 0].to(device)
            mask = self._mask(layer, row, own[None].to(device), keys, dtype)
            out.append(Piece(slice(first, last), None if len(keys) == end else keys, end, mask))
        return out

    def _rule(self, layer: int, row: slice) -> Bool[Tensor, "rows heads segments segments"]:
        """What some rows' rules say at a layer; one for all rows that have the same."""
        return torch.stack([rule.at(layer) for rule in (self._rules[row] if len(self._rules) > 1 else self._rules)])

    def _mask(self, layer: int, row: slice, at: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive mask [batch or 1, heads or 1, queries, keys] of queries at some rows' prompt indices `at`."""
        device = at.device
        segment = self.segment.on(device)[row]
        open_ = (keys <= at[:, :, None])[:, None]
        if not self.plain:
            rules = self._rule(layer, row).to(device).expand(len(at), -1, -1, -1)
            batch = torch.arange(len(at), device=device)[:, None]
            rows = rules.transpose(1, 2)[batch, torch.gather(segment, 1, at)]  # [b, q, h, segments]
            seen = torch.gather(rows, 3, segment[:, None, None, keys].expand(-1, rows.shape[1], rows.shape[2], -1))
            open_ = open_ & seen.transpose(1, 2)
        if (window := self.windows[layer]) is not None:
            positions = self.positions.on(device)[row]
            here = torch.gather(positions, 1, at)
            open_ = open_ & (here[:, :, None] - positions[:, None, keys] < window)[:, None]
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
