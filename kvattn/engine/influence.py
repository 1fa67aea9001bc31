"""Which part of a prompt can reach which, under a plan: reachability, exact for any weights.

Token t "holds" segment s when some change of s's text could change t's residual stream. Holding spreads over every
edge that the plan leaves open, layer by layer; a kept token takes in nothing, and brings what its block had seen. What
a method chose because of the texts (what to recompute, whether to reuse at all) is part of the plan and is not traced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from kvattn.engine.layout import Segment
    from kvattn.engine.plan import KVBlock, KVPlan


CHUNK = 256  # queries at a time where a window cuts


@dataclass(frozen=True)
class Influence:
    """The influence graph of a plan.

    names:    segment names
    reaches:  [segments, segments], reaches[a, b]: a's text can change what b's tokens hold (KV or output)
    decision: [segments], a's text can change the decision
    via:      for each segment that reaches the decision, the other segments some path runs through
    adapted:  segments on whose computed tokens an adapter acts
    """

    names: tuple[str, ...]
    reaches: Bool[Tensor, "segments segments"]
    decision: Bool[Tensor, " segments"]
    via: dict[str, tuple[str, ...]]
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for i, name in enumerate(self.names):
            if self.decision[i]:
                through = ", ".join(_ranges(self.via[name])) or "nothing else"
                lines.append(f"{name:<13} reaches the decision; paths may run through: {through}")
            else:
                lines.append(f"{name:<13} cannot reach the decision")
        if self.adapted:
            lines.append(f"an adapter acts on computed tokens of: {', '.join(_ranges(self.adapted))}")
        return "\n".join(lines)


def _ranges(names: Sequence[str]) -> list[str]:
    """Segment names by role, slots as ranges: ["header:1", "header:2", "suffix"] gives ["header:1-2", "suffix"]."""
    slots: dict[str, list[int]] = {}
    plain = []
    for name in names:
        role, _, slot = name.partition(":")
        if slot:
            slots.setdefault(role, []).append(int(slot))
        else:
            plain.append(role)
    out = []
    for role, numbers in slots.items():
        starts = [n for n in numbers if n - 1 not in numbers]
        stops = [n for n in numbers if n + 1 not in numbers]
        runs = (str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
        out.append(f"{role}:{','.join(runs)}")
    return [*(n for n in plain if n != "suffix"), *out, *(n for n in plain if n == "suffix")]


class Edges:
    """Who may attend to whom at one layer: causal by index, the visibility rule of one head (of any, if none is named),
    and the window by position. Nothing of size tokens x tokens is held: all tokens of a segment see alike but for
    causality, and a window that cuts something is gone through a chunk of queries at a time."""

    def __init__(self, plan: KVPlan, layer: int, window: int | None = None, head: int | None = None) -> None:
        rule = plan.visibility.at(layer)
        self.sees = (rule.any(0) if head is None else rule[head % len(rule)]).float()  # [segments, segments]
        self.segment, self.position = plan.layout.segment_of, plan.positions
        self.spans = [slice(s.start, s.stop) for s in plan.layout.segments]
        cuts = window is not None and int(self.position.max() - self.position.min()) >= window
        self.window = window if cuts else None

    def read(self, x: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens columns"]:
        """For every query, the sum of x over the tokens that it may attend to."""
        if self.window is not None:
            return torch.cat([rows @ x for _, rows in self._rows(self.window)])
        own = torch.cat([x[s].cumsum(0) for s in self.spans])
        return (self.sees.tril(-1) @ self._by_segment(x))[self.segment] + own

    def spread(self, x: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens columns"]:
        """For every key, the sum of x over the tokens that may attend to it."""
        if self.window is not None:
            return sum((rows.T @ x[part] for part, rows in self._rows(self.window)), torch.zeros_like(x))
        own = torch.cat([x[s].flip(0).cumsum(0).flip(0) for s in self.spans])
        return (self.sees.tril(-1).T @ self._by_segment(x))[self.segment] + own

    def _by_segment(self, x: Tensor) -> Tensor:
        return torch.stack([x[s].sum(0) for s in self.spans])

    def _rows(self, window: int) -> Iterator[tuple[slice, Float[Tensor, "queries tokens"]]]:
        index = torch.arange(len(self.segment))
        for at in range(0, len(index), CHUNK):
            part = slice(at, at + CHUNK)
            near = self.position[part, None] - self.position < window
            yield part, self.sees[self.segment[part]][:, self.segment] * (near & (index <= index[part, None]))


def explain(plan: KVPlan, window: Sequence[int | None] | None = None) -> Influence:
    """Reachability under `plan`; `window[layer]` is the sliding window of each layer (None: full attention)."""
    names, segment = plan.layout.names, plan.layout.segment_of
    window = window or [None] * plan.layers
    own = torch.nn.functional.one_hot(segment, len(names)).bool()
    bottom, brought = _brought(plan, own)
    layered = plan.visibility.allowed.dim() > 2
    edges = {key: Edges(plan, *key) for key in {(i if layered else 0, w) for i, w in enumerate(window)}}
    by_layer = [edges[i if layered else 0, w] for i, w in enumerate(window)]

    held = own  # what the residual stream holds on entering a layer, [tokens, segments]
    kv = []
    for layer in range(plan.layers):
        fresh = (plan.depth > layer)[:, None]
        kv.append(torch.where(fresh, held, bottom if layer == 0 else brought))
        held = held | (by_layer[layer].read(kv[-1].float()) > 0)
    output = torch.where((plan.depth == plan.layers)[:, None], held, torch.stack(kv).any(0))

    ends = torch.zeros(len(plan.layout), dtype=torch.bool)
    ends[list(plan.layout.decisions)] = True
    decision = held[ends].any(0)
    reaches = torch.stack([output[segment == b].any(0) for b in range(len(names))], dim=1)
    acts = torch.zeros(len(segment), dtype=torch.bool) if plan.reach is None else plan.reach.tokens
    adapted = tuple(name for i, name in enumerate(names) if bool(acts[segment == i].any()))
    return Influence(names, reaches, decision, _via(plan, kv, by_layer, ends, decision), adapted)


def _brought(plan: KVPlan, own: Tensor) -> tuple[Tensor, Tensor]:
    """Two times [tokens, segments]: what a kept token's KV holds at layer 0, where it is the token's own unless it was
    mapped, and above."""
    bottom, above = own.clone(), own.clone()
    for k in plan.kept:
        span = slice(k.start, k.start + len(k.block))
        if k.foreign:
            bottom[span], above[span] = False, False
            continue
        for here in plan.layout.segments:
            part = slice(max(span.start, here.start), min(span.stop, here.stop))
            for i, s in enumerate(plan.layout.segments):
                if part.start < part.stop and _saw(plan, k.block, here, s):
                    above[part, i] = True
                    bottom[part, i] |= k.block.mapped
    return bottom, above


def _saw(plan: KVPlan, block: KVBlock, here: Segment, s: Segment) -> bool:
    """Whether segment `s` was before the tokens of `here` where their block was made."""
    if block.source == "isolated" and s.start > here.start:
        return False
    if s.role == "link":  # no block was ever made behind one
        return False
    if s.role == "question":
        return True
    if s.role == "candidate":
        return plan.layout.candidates[s.slot] in block.seen  # type: ignore[index]
    if block.source == "isolated":
        return s.slot in (None, here.slot)
    if "patched" in block.source:  # by a dense pass under another order
        return s.role not in ("suffix", "branch")
    return block.source == "template" and s.start <= here.start


def _via(plan: KVPlan, kv: list[Tensor], edges: list[Edges], ends: Tensor, decision: Tensor) -> dict:
    """Segments through which each source reaches the decision, by walking the layers backwards."""
    names, segment = plan.layout.names, plan.layout.segment_of
    needed, through = ends.clone(), torch.zeros(len(names), len(names), dtype=torch.bool)
    for layer in reversed(range(plan.layers)):
        read = edges[layer].spread(needed[:, None].float())[:, 0] > 0  # tokens whose KV here feeds the decision
        carried = kv[layer] & read[:, None]
        for t in range(len(names)):
            through[:, t] |= carried[segment == t].any(0)
        needed = needed | (read & (plan.depth > layer))
    through.fill_diagonal_(False)
    return {
        names[a]: tuple(names[t] for t in range(len(names)) if through[a, t])
        for a in range(len(names))
        if bool(decision[a])
    }
