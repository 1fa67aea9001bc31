"""How a judge's KV cache is built: blocks that are kept, tokens that are computed, and who may see whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvattn.engine.layout import PromptLayout, Segment
from kvattn.engine.reach import Reach
from kvattn.engine.rotary import Rotary
from kvattn.errors import KvattnError


@dataclass(frozen=True)
class KVBlock:
    """Keys and values of a span of tokens, for every layer.

    keys, values: [layers, kv heads, tokens, dim], keys with their rotation
    token_ids:    [tokens], what the span says
    positions:    [tokens], RoPE positions the keys were made at
    seen:         ids of the candidates that it depends on: visible when it was made (its own among them), or used to
                  correct it
    source:       how it was made, e.g. "parallel", "pr-teacher-forced", "isolated"; "given" by somebody else
    weights:      which weights made it (`Engine.identity`), where that was stated
    mapped:       whether it was told from several layers of another model: its bottom layer, too, holds what was seen
    """

    keys: Float[Tensor, "layers heads tokens dim"]
    values: Float[Tensor, "layers heads tokens dim"]
    token_ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    seen: frozenset[str] = frozenset()
    source: str = ""
    weights: str | None = None
    mapped: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.numel() * self.keys.element_size() * 2

    def moved(self, positions: Int[Tensor, " tokens"], rotary: Rotary) -> KVBlock:
        """The block at other positions: keys turned by the difference, values as they are."""
        return replace(self, keys=rotary.turn(self.keys, self.positions, positions), positions=positions)

    def corrected(
        self, keys: Tensor | None = None, values: Tensor | None = None, seen: frozenset[str] = frozenset()
    ) -> KVBlock:
        """The block with offsets [layers, kv heads, tokens, dim] added to its keys and values; `seen` names the
        candidates that the offsets depend on."""
        return replace(
            self,
            keys=self.keys if keys is None else self.keys + keys,
            values=self.values if values is None else self.values + values,
            seen=self.seen | seen,
        )

    def part(self, start: int, stop: int) -> KVBlock:
        """The tokens [start, stop) of the block."""
        return replace(
            self,
            keys=self.keys[:, :, start:stop],
            values=self.values[:, :, start:stop],
            token_ids=self.token_ids[start:stop],
            positions=self.positions[start:stop],
        )


@dataclass(frozen=True)
class Kept:
    """A block placed at index `start` of the prompt. `foreign` marks a block that says something else (a null)."""

    block: KVBlock
    start: int
    foreign: bool = False


@dataclass(frozen=True)
class Visibility:
    """Which segment may attend to which, on top of causality by prompt index.

    allowed: [segments, segments], [layers, segments, segments] or [layers, heads, segments, segments];
             allowed[..., a, b]: tokens of segment a may attend to tokens of segment b
    causal:  True when nothing is cut, so that the plain causal kernel serves
    """

    allowed: Bool[Tensor, ...]
    causal: bool = False

    def __post_init__(self) -> None:
        if not bool(self.allowed.diagonal(dim1=-2, dim2=-1).all()):
            raise ValueError("a segment must see itself: a token without any key has no attention")

    @staticmethod
    def full(layout: PromptLayout) -> Visibility:
        """Plain causal attention, except that branches do not see each other."""
        n = len(layout.segments)
        allowed = torch.ones(n, n, dtype=torch.bool)
        branches = [i for i, s in enumerate(layout.segments) if s.role == "branch"]
        for a in branches:
            for b in branches:
                allowed[a, b] = a == b
        return Visibility(allowed, causal=len(branches) < 2)

    @staticmethod
    def isolated(
        layout: PromptLayout, roles: Sequence[str] = ("header", "candidate", "link", "separator")
    ) -> Visibility:
        """Segments of these roles see their own slot and what belongs to no slot; everything else sees all."""
        allowed = Visibility.full(layout).allowed.clone()
        for i, a in enumerate(layout.segments):
            for j, b in enumerate(layout.segments):
                if a.role in roles and a.slot is not None and b.slot is not None and a.slot != b.slot:
                    allowed[i, j] = False
        return Visibility(allowed)

    def cut(
        self,
        pairs: Sequence[tuple[int, int]],
        layers: int,
        heads: int,
        where: Sequence[tuple[int, int]] | None = None,
    ) -> Visibility:
        """The same rule with edges (segment a to segment b) cut, everywhere or at the (layer, head) pairs `where`."""
        allowed = self.allowed
        if where is not None and allowed.dim() < 4:
            lead = allowed[None, None] if allowed.dim() == 2 else allowed[:, None]
            allowed = lead.expand(layers, heads, -1, -1)
        allowed = allowed.clone()
        for a, b in pairs:
            if where is None:
                allowed[..., a, b] = False
            else:
                for layer, head in where:
                    allowed[layer, head, a, b] = False
        return Visibility(allowed)

    def at(self, layer: int) -> Bool[Tensor, "heads segments segments"]:
        """The rule at one layer, heads first (one head when the rule is the same for all)."""
        a = self.allowed
        return a[None] if a.dim() == 2 else (a[layer][None] if a.dim() == 3 else a[layer])


@dataclass(frozen=True)
class KVPlan:
    """One way of building the judge's cache.

    kept:       blocks placed in the prompt
    depth:      [tokens], through how many layers each token is computed: 0 for kept, `layers` for recomputed; in
                between, its KV is fresh below that layer and kept from there on
    visibility: who may see whom
    positions:  [tokens], RoPE positions
    reach:      an adapter and the computed tokens that it acts on; what is kept is the base model's
    probe_token_layers: token-layers already spent to choose this plan
    """

    layout: PromptLayout
    layers: int
    depth: Int[Tensor, " tokens"]
    kept: tuple[Kept, ...]
    visibility: Visibility
    positions: Int[Tensor, " tokens"]
    probe_token_layers: int = 0
    notes: tuple[str, ...] = ()
    reach: Reach | None = None

    @classmethod
    def of(
        cls,
        layout: PromptLayout,
        layers: int,
        depth: Int[Tensor, " tokens"],
        kept: Sequence[Kept] = (),
        visibility: Visibility | None = None,
        positions: Int[Tensor, " tokens"] | None = None,
    ) -> KVPlan:
        """A plan under full visibility, at the layout's own positions, unless others are given."""
        visibility = Visibility.full(layout) if visibility is None else visibility
        return cls(layout, layers, depth, tuple(kept), visibility, layout.positions if positions is None else positions)

    def __post_init__(self) -> None:
        covered = torch.zeros(len(self.layout), dtype=torch.bool)
        for k in self.kept:
            stop = k.start + len(k.block)
            if stop > len(self.layout) or bool(covered[k.start : stop].any()):
                raise ValueError(f"kept block at {k.start}:{stop} overlaps another or leaves the prompt")
            if not k.foreign and not torch.equal(k.block.token_ids, self.layout.token_ids[k.start : stop]):
                raise ValueError(f"kept block at {k.start}:{stop} was made from other token ids than the prompt's")
            covered[k.start : stop] = True
        if bool(((self.depth < self.layers) & ~covered).any()):
            raise ValueError("a token that is not computed through all layers needs a kept block")
        if bool((self.depth[list(self.layout.decisions)] < self.layers).any()):
            raise ValueError("the decision tokens must be computed: nothing else gives their logits")
        if self.reach is not None:
            if bool((self.reach.tokens & (self.depth == 0)).any()):
                raise ValueError("an adapter acts on computed tokens alone: what is kept is the base model's")
            links = self.reach.adapter.links
            if links is not None and any(s.length != len(links) for s in self.layout.each("link")):
                raise ValueError(
                    f"the adapter has embeddings for {len(links)} link tokens a slot, the plan another number"
                )

    @property
    def token_layers(self) -> int:
        """Token-layers that executing the plan computes."""
        return int(self.depth.sum())

    @property
    def is_dense(self) -> bool:
        """Whether everything is computed under plain causal attention at plain positions."""
        return self.visibility.causal and bool((self.depth == self.layers).all())

    def recompute(self, tokens: Bool[Tensor, " tokens"], layers: int | None = None) -> KVPlan:
        """The plan with more tokens computed, through `layers` layers (default: all)."""
        depth = torch.where(tokens, torch.full_like(self.depth, self.layers if layers is None else layers), self.depth)
        return replace(self, depth=torch.maximum(depth, self.depth))


def dense_plan(layout: PromptLayout, layers: int, visibility: Visibility | None = None) -> KVPlan:
    """Everything recomputed."""
    return KVPlan.of(layout, layers, torch.full((len(layout),), layers), visibility=visibility)


def keep(
    layout: PromptLayout,
    layers: int,
    placed: Sequence[tuple[Segment, KVBlock]],
    visibility: Visibility | None = None,
    foreign: bool = False,
) -> KVPlan:
    """Keep each block at its segment and recompute the rest."""
    depth = torch.full((len(layout),), layers)
    kept = []
    for segment, block in placed:
        if len(block) != segment.length:
            raise KvattnError(f"block of {len(block)} tokens does not fit {segment.name} of {segment.length}")
        depth[segment.start : segment.stop] = 0
        kept.append(Kept(block, segment.start, foreign))
    return KVPlan.of(layout, layers, depth, kept, visibility)
