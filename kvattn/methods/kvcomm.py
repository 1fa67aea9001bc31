"""KVCOMM and its relatives: keep candidates and template text, corrected by what context did to similar texts before.

KVCOMM: Ye et al. 2025 (arXiv 2510.12872). PAL-KV and slot-aligned pooling change the lookup alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kvattn.blocks import TEMPLATE_ROLES, Blocks
from kvattn.engine import Engine
from kvattn.errors import KvattnError
from kvattn.execution import Execution
from kvattn.layout import PromptLayout, Segment
from kvattn.methods.anchors import TENSORS, Anchor, AnchorPool, channel_weights, is_new, token_weights, top_mass
from kvattn.methods.base import Method
from kvattn.plan import KVBlock, KVPlan, Rotary, dense_plan, keep

QUESTION = "question"


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
        """Write the pool."""
        self.state.save(folder, name)

    def restore(self, folder: Path, name: str) -> None:
        """Take over a saved pool."""
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
        if any(is_new(b.values, self.state.of(owner, blocks.prompt.id), self.gamma)[0] for owner, _, b in texts):
            return _noted(dense_plan(layout, engine.layers), f"{self.name}: fallback")
        base = blocks.template(layout)
        placed: list[tuple[Segment, KVBlock]] = []
        change: dict[str, tuple[Tensor, Tensor, frozenset[str]]] = {}
        for owner, s, block in texts:
            placed.append((s, self._corrected(owner, s, block, layout, blocks, engine, change)))
        for s in layout.each(*TEMPLATE_ROLES):
            block = base[s.name].moved(layout.positions[s.start : s.stop], engine.rotary)
            if s.name in change:
                block = block.corrected(*change[s.name])
            if s.stop == layout.trunk and s.length:  # the last token asks, so it is computed
                s, block = Segment(s.role, s.slot, s.start, s.stop - 1), block.part(0, len(block) - 1)
            placed.append((s, block))
        return _noted(keep(layout, engine.layers, placed), f"{self.name}: reused")

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """Count the anchors that were used; after a fallback, store what was new."""
        if self.frozen:
            return
        question = blocks.prompt.id
        texts = self._texts(layout, blocks)
        judged = [(x, is_new(x[2].values, self.state.of(x[0], question), self.gamma)) for x in texts]
        fell_back = any(new for _, (new, _, _) in judged)
        for (owner, s, block), (new, similarity, usable) in judged:
            if new and fell_back:
                self.state.add(self._anchor(owner, s, block, layout, blocks, execution))
            elif not new:
                for i in top_mass(similarity, self.top_p):
                    usable[i].uses += 1

    def _texts(self, layout: PromptLayout, blocks: Blocks) -> list[tuple[str, Segment, KVBlock]]:
        """(owner, segment, base KV turned to positions 0, 1, ...) of question and candidates."""
        rotary = blocks.engine.rotary
        out = [(QUESTION, layout.find("question"), _canonical(blocks.question(), rotary))]
        for slot, (s, candidate) in enumerate(layout.shown()):
            made = _canonical(blocks.execution(candidate), rotary)
            out.append((self.owner(blocks, layout, slot), s, made))
        return out

    def _corrected(self, owner, s, block, layout, blocks, engine, change) -> KVBlock:
        """The text's block in place and corrected; the correction of the template text after it goes to `change`."""
        positions = layout.positions[s.start : s.stop]
        moved = block.moved(positions, engine.rotary)
        anchors = [a for a in self.lookup(owner, blocks.prompt.id) if a.length >= s.length]
        if not anchors:
            return moved
        start = int(layout.positions[s.start]) if s.length else 0
        offsets = []
        for base, of, by in ((block.keys, "keys", "key_change"), (block.values, "values", "value_change")):
            w = token_weights(base, [getattr(a, of) for a in anchors], self.temperature)
            total = torch.zeros_like(base, dtype=torch.float32)
            for a, weight in zip(anchors, w, strict=True):
                step = self._framed(getattr(a, by)[:, :, : s.length], start - a.start, by, engine.rotary)
                total += weight[None, None, :, None] * step.to(base.device).float()
            offsets.append(_above_layer_0(total).to(base.dtype))
        self._after(s, block, layout, anchors, engine.rotary, change)
        return moved.corrected(*offsets)

    def _after(self, s: Segment, block: KVBlock, layout: PromptLayout, anchors, rotary: Rotary, change) -> None:
        """Corrections of the template segments between this text and the next."""
        follow = following(layout, s)
        length = sum(t.length for t in follow)
        if length == 0:
            return
        start = int(layout.positions[follow[0].start])
        totals = []
        for base, of, by in ((block.keys, "keys", "after_keys"), (block.values, "values", "after_values")):
            w = channel_weights(base, [getattr(a, of) for a in anchors])
            total = torch.zeros(*base.shape[:2], length, base.shape[3], device=base.device)
            for a, weight in zip(anchors, w, strict=True):
                stored = getattr(a, by)
                if stored.shape[2] >= length:  # too short a one is skipped, its weight with it
                    step = self._framed(stored[:, :, :length], start - a.after_start, by, rotary)
                    total += weight[:, :, None, :] * step.to(base.device).float()
            totals.append(_above_layer_0(total).to(base.dtype))
        at = 0
        for t in follow:
            keys, values = (x[:, :, at : at + t.length] for x in totals)
            change[t.name] = (keys, values, block.seen)
            at += t.length

    def _framed(self, difference: Tensor, shift: int, by: str, rotary: Rotary) -> Tensor:
        if self.frame == "official" or "value" in by:
            return difference
        return rotary.turn(difference, torch.full((difference.shape[2],), shift))

    def _anchor(self, owner, s, block, layout, blocks, execution) -> Anchor:
        rotary = blocks.engine.rotary
        moved = block.moved(layout.positions[s.start : s.stop], rotary)
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
            owner=owner,
            slot=-1 if s.slot is None else s.slot,
            keys=block.keys,
            values=block.values,
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
        """The display slot."""
        return f"slot:{slot + 1}"


def following(layout: PromptLayout, s: Segment) -> list[Segment]:
    """The template segments between a text and the next one (branches excluded)."""
    out: list[Segment] = []
    for t in layout.segments[layout.segments.index(s) + 1 :]:
        if t.role in ("question", "candidate", "branch"):
            break
        out.append(t)
    return out


def _canonical(block: KVBlock, rotary: Rotary) -> KVBlock:
    return block.moved(torch.arange(len(block)), rotary)


def _above_layer_0(change: Tensor) -> Tensor:
    change[0] = 0
    return change


def _noted(plan: KVPlan, note: str) -> KVPlan:
    return replace(plan, notes=(*plan.notes, note))
