"""KVCOMM and its relatives: keep candidates and template text, corrected by what context did to similar texts before.

KVCOMM: Ye et al. 2025 (arXiv 2510.12872). PAL-KV and slot-aligned pooling change the lookup alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from kvattn.engine.blocks import TEMPLATE_ROLES, Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout, Segment
from kvattn.engine.plan import KVBlock, KVPlan, dense_plan, keep
from kvattn.engine.rotary import Rotary
from kvattn.errors import KvattnError
from kvattn.methods.anchors import TENSORS, Anchor, AnchorPool, channel_weights, is_new, token_weights, top_mass
from kvattn.methods.base import Method

QUESTION = "question"
HERE = ("key_change", "value_change")
AFTER = ("after_keys", "after_values")
Change = tuple[Tensor, Tensor, frozenset[str]]  # of keys, of values, and the candidates that they depend on


class Text(NamedTuple):
    """A text that is kept. own: its KV as its agent made it; base: the same with keys turned to positions 0, 1, ..."""

    owner: str
    segment: Segment
    own: KVBlock
    base: KVBlock


@dataclass(frozen=True)
class KVComm(Method):
    """Question, candidates and template text kept, moved and corrected by anchors; the last token recomputed.

    When some text is like no anchor, the whole prompt is prefilled densely and becomes one.

    Parameters
    ----------
    gamma : the gate's threshold on entropy, as a share of its maximum.
    size : V, anchors kept for each agent and for the question (20 as published; the judge study used 5).
    window : the least used of so many oldest anchors is evicted.
    temperature : of the token weights.
    top_p : mass of anchors that count as used.
    frame : "official" adds a key difference as it was taken; "rotated" turns it from the anchor's positions to the
        target's first.
    pool : "online" learns from every fallback, in the order of the stream; "frozen" was warmed before and never
        changes, so that questions are independent.
    """

    gamma: float = 0.3
    size: int = 5
    window: int = 5
    temperature: float = 1.0
    top_p: float = 0.9
    frame: Literal["official", "rotated"] = "official"
    pool: Literal["online", "frozen"] = "online"
    state: AnchorPool = field(default_factory=AnchorPool, compare=False, repr=False)

    name = "kvcomm"
    source = "Ye et al. 2025 (arXiv 2510.12872)"
    learns = True

    def __post_init__(self) -> None:
        for name, holds, what in (
            ("gamma", self.gamma >= 0, "a share of the largest entropy, from 0 up"),
            ("size", self.size >= 1, "a number of anchors, from 1 up"),
            ("window", self.window >= 1, "a number of anchors, from 1 up"),
            ("temperature", self.temperature > 0, "above 0"),
            ("top_p", 0 < self.top_p <= 1, "a share above 0, at most 1"),
        ):
            if not holds:
                raise KvattnError(f"method {self.name!r}: {name} is {what}, not {getattr(self, name)}")
        self.state.size, self.state.window = self.size, self.window

    @property
    def frozen(self) -> bool:
        """Whether the pool is filled before a study and never after."""
        return self.pool == "frozen"

    @property
    def needs_warming(self) -> bool:
        """A frozen pool has to be filled first."""
        return self.frozen and not self.state.anchors

    def learner(self) -> KVComm:
        """The same with an online pool, which is this one's."""
        return replace(self, pool="online")

    def save(self, folder: Path, name: str) -> None:
        self.state.save(folder, name)

    def restore(self, folder: Path, name: str) -> None:
        self.state.anchors = AnchorPool.load(folder, name).anchors

    def learned_bytes(self) -> dict[str, int]:
        """Bytes of every question's anchors."""
        out: dict[str, int] = {}
        for a in (a for owned in self.state.anchors.values() for a in owned):
            out[a.question] = out.get(a.question, 0) + sum(getattr(a, name).nbytes for name in TENSORS)
        return out

    # -- lookup: what the variants change ----------------------------------------------------------------------------

    def owner(self, blocks: Blocks, layout: PromptLayout, slot: int) -> str:
        """Under which name a candidate's anchors are pooled: its agent's."""
        candidate = blocks.prompt.candidates[blocks.index[layout.candidates[slot]]]
        return f"agent:{candidate.agent or candidate.id}"

    def lookup(self, owner: str, question: str) -> list[Anchor]:
        """Anchors that may correct a text of this owner."""
        return self.state.of(owner, question)

    # -- the method ---------------------------------------------------------------------------------------------------

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The corrected cache, or dense where some text must become an anchor first."""
        if self.needs_warming:
            raise KvattnError(f"{self.name}:pool=frozen has no anchors; warm it on held-out questions or load a pool")
        texts = self._texts(layout, blocks)
        gates = [is_new(x.base.values, self.state.of(x.owner, blocks.prompt.id), self.gamma) for x in texts]
        if not self.frozen:
            blocks.memo["gates", self, layout.candidates] = gates
        if any(new for new, _, _ in gates):
            return _noted(dense_plan(layout, engine.layers), f"{self.name}: fallback")
        base = blocks.template(layout)
        placed: list[tuple[Segment, KVBlock]] = []
        change: dict[str, Change] = {}
        for x in texts:
            placed.append((x.segment, self._corrected(x, layout, blocks, engine, change)))
        for s in layout.each(*TEMPLATE_ROLES):
            block = _placed(base[s.name], layout.positions[s.start : s.stop], engine.rotary, change.get(s.name))
            if s.stop == layout.trunk and s.length:  # the last token asks, so it is computed
                s, block = Segment(s.role, s.slot, s.start, s.stop - 1), block.part(0, len(block) - 1)
            placed.append((s, block))
        return _noted(keep(layout, engine.layers, placed), f"{self.name}: reused")

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """Count the anchors that were used; after a fallback, store what was new. What is new, the plan found out."""
        if self.frozen:
            return
        gates = blocks.memo["gates", self, layout.candidates]
        fell_back = any(new for new, _, _ in gates)
        for x, (new, similarity, usable) in zip(self._texts(layout, blocks), gates, strict=True):
            if new and fell_back:
                self.state.add(self._anchor(x, layout, blocks, execution))
            elif not new:
                for i in top_mass(similarity, self.top_p):
                    usable[i].uses += 1

    def _texts(self, layout: PromptLayout, blocks: Blocks) -> list[Text]:
        """Question and candidates."""
        bases = blocks.memo.setdefault(("kvcomm",), {})

        def text(owner: str, s: Segment, candidate: str | None) -> Text:
            own = blocks.question() if candidate is None else blocks.execution(candidate)
            if candidate not in bases:
                bases[candidate] = own.moved(torch.arange(len(own)), blocks.engine.rotary)
            return Text(owner, s, own, bases[candidate])

        shown = enumerate(layout.shown())
        candidates = [text(self.owner(blocks, layout, slot), s, candidate) for slot, (s, candidate) in shown]
        return [text(QUESTION, layout.find("question"), None), *candidates]

    def _corrected(self, x: Text, layout, blocks, engine, change) -> KVBlock:
        """The text's block in place and corrected; the correction of the template text after it goes to `change`."""
        s, rotary = x.segment, engine.rotary
        positions = layout.positions[s.start : s.stop]
        anchors = [a for a in self.lookup(x.owner, blocks.prompt.id) if a.length >= s.length]
        if not anchors:
            return _placed(x.own, positions, rotary, None)
        bases = [(getattr(x.base, of), [getattr(a, of) for a in anchors]) for of in ("keys", "values")]
        weights = [rearrange(token_weights(*b, self.temperature), "anchor token -> anchor 1 1 token 1") for b in bases]
        keys, values = (self._change(anchors, w, by, layout, [s], rotary) for w, by in zip(weights, HERE, strict=True))
        here = (keys, values, frozenset[str]())
        follow = following(layout, s)
        if follow:
            weights = [
                rearrange(channel_weights(*b), "anchor layer head dim -> anchor layer head 1 dim") for b in bases
            ]
            after = (self._change(anchors, w, by, layout, follow, rotary) for w, by in zip(weights, AFTER, strict=True))
            parts = (total.split([t.length for t in follow], 2) for total in after)
            for t, keys, values in zip(follow, *parts, strict=True):
                change[t.name] = (keys, values, x.base.seen)
        return _placed(x.own, positions, rotary, here)

    def _change(self, anchors, weights, by: str, layout, span: list[Segment], rotary: Rotary) -> Tensor:
        """The weighted sum of the anchors' differences over consecutive segments, in fp32; none at layer 0. weights:
        [anchors, layers or 1, heads or 1, tokens or 1, dim or 1]"""
        length = sum(s.length for s in span)
        start = int(layout.positions[span[0].start]) if length else 0
        layers, heads, _, dim = getattr(anchors[0], by).shape
        total = torch.zeros(layers, heads, length, dim, device=weights.device)
        for a, weight in zip(anchors, weights, strict=True):
            stored = getattr(a, by)
            if stored.shape[2] >= length:  # too short a one is skipped, its weight with it
                shift = start - (a.after_start if by in AFTER else a.start)
                step = self._framed(stored[:, :, :length], shift, by, rotary)
                total += weight * step.to(total.device).float()
        total[0] = 0
        return total

    def _framed(self, difference: Tensor, shift: int, by: str, rotary: Rotary) -> Tensor:
        if self.frame == "official" or "value" in by:
            return difference
        start = torch.zeros(difference.shape[2], dtype=torch.long)
        return rotary.turn(difference, start, start + shift)

    def _anchor(self, x: Text, layout, blocks, execution) -> Anchor:
        s, rotary = x.segment, blocks.engine.rotary
        moved = x.own.moved(layout.positions[s.start : s.stop], rotary)
        real = execution.block(s)
        follow = following(layout, s)
        base = blocks.template(layout)
        after_k, after_v = [], []
        for t in follow:
            there = base[t.name].moved(layout.positions[t.start : t.stop], rotary)
            now = execution.block(t)
            after_k.append(now.keys - there.keys)
            after_v.append(now.values - there.values)
        empty = real.keys[:, :, :0]
        return Anchor(
            question=blocks.prompt.id,
            owner=x.owner,
            slot=-1 if s.slot is None else s.slot,
            keys=x.base.keys,
            values=x.base.values,
            key_change=real.keys - moved.keys,
            value_change=real.values - moved.values,
            after_keys=torch.cat(after_k, 2) if after_k else empty,
            after_values=torch.cat(after_v, 2) if after_v else empty,
            start=int(layout.positions[s.start]) if s.length else 0,
            after_start=int(layout.positions[follow[0].start]) if follow else 0,
        )


@dataclass(frozen=True)
class PALKV(KVComm):
    """KVCOMM with the lookup of candidates over all agents' pools; the gate stays with each agent's own."""

    name = "pal-kv"
    source = "Liang et al. 2026 (arXiv 2601.08343)"

    def lookup(self, owner, question):
        """Anchors of every agent; the question's own for the question."""
        if owner == QUESTION:
            return self.state.of(owner, question)
        return self.state.all(question, lambda name: name != QUESTION)


@dataclass(frozen=True)
class SlotAligned(KVComm):
    """KVCOMM with candidates pooled by the slot they were displayed in instead of by agent."""

    name = "slot-aligned"
    source = "kvattn, after Liang et al. 2026 (arXiv 2601.08343)"

    def owner(self, blocks, layout, slot):
        return f"slot:{slot + 1}"


def following(layout: PromptLayout, s: Segment) -> list[Segment]:
    """The template segments between a text and the next one (branches excluded)."""
    out: list[Segment] = []
    for t in layout.segments[layout.segments.index(s) + 1 :]:
        if t.role in ("question", "candidate", "branch"):
            break
        out.append(t)
    return out


def _placed(block: KVBlock, positions: Tensor, rotary: Rotary, change: Change | None) -> KVBlock:
    """The block moved and corrected in fp32, and rounded once."""
    wide = replace(block, keys=block.keys.float(), values=block.values.float())
    wide = wide.moved(positions, rotary)
    wide = wide.corrected(*change) if change else wide
    return replace(wide, keys=wide.keys.to(block.keys.dtype), values=wide.values.to(block.values.dtype))


def _noted(plan: KVPlan, note: str) -> KVPlan:
    return replace(plan, notes=(*plan.notes, note))
