"""Naive reuse: the candidates' KV as their agents made it, moved into place; with the text around them, or without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvattn.engine.blocks import TEMPLATE_ROLES, Blocks
from kvattn.engine.plan import Kept, KVPlan, Visibility, keep
from kvattn.methods.base import Method

Source = Literal["recomputed", "kept"]


@dataclass(frozen=True)
class Naive(Method):
    """Everything kept but the last token: candidates and question from their execution contexts, the template's text
    from a pass over the bare template, keys turned to their place in the judge's prompt.

    That the published method keeps template and question, too, is inferred from its reuse rate, given as 100.

    Parameters
    ----------
    question : "kept" from the execution context, or "recomputed".
    """

    question: Source = "kept"

    name = "naive"
    source = "Liang et al. 2026 (arXiv 2601.08343)"

    def plan(self, layout, blocks, engine):
        placed = placed_texts(layout, blocks, self.question)
        base = blocks.template(layout)
        for s in layout.each(*TEMPLATE_ROLES):
            block = base[s.name]
            if s.stop == layout.trunk and s.length:  # the last token asks, so it is computed
                s, block = type(s)(s.role, s.slot, s.start, s.stop - 1), block.part(0, len(block) - 1)
            placed.append((s, block))
        return keep(layout, engine.layers, placed)


@dataclass(frozen=True)
class NaiveLinked(Method):
    """Candidates kept from their execution contexts; the template's text is computed in the judge's prompt, where
    headers and separators see the stale candidates and link them.

    Parameters
    ----------
    headers : "linked" headers and separators see all candidates before them; "isolated" ones see their own candidate
        alone.
    question : "recomputed", or "kept" from the execution context.
    prefix : "kept" takes the text before the question from a pass over the bare template. Nothing stands before it, so
        that this changes nothing but the cost.
    """

    headers: Literal["linked", "isolated"] = "linked"
    question: Source = "recomputed"
    prefix: Source = "recomputed"

    name = "naive-linked"
    source = "kvattn, after Liang et al. 2026 (arXiv 2601.08343)"

    def plan(self, layout, blocks, engine):
        own = ("header", "separator")
        visibility = Visibility.isolated(layout, own) if self.headers == "isolated" else None
        plan = keep(layout, engine.layers, placed_texts(layout, blocks, self.question), visibility)
        return keep_prefix(plan, blocks) if self.prefix == "kept" else plan


def placed_texts(layout, blocks: Blocks, question: Source) -> list:
    """Where candidates, and the question if it is kept, go, with their blocks."""
    placed = [(s, blocks.execution(c)) for s, c in layout.shown()]
    return placed + ([(s, blocks.question()) for s in layout.each("question")] if question == "kept" else [])


def keep_prefix(plan: KVPlan, blocks: Blocks) -> KVPlan:
    """The plan with the text before the question kept from a pass over the bare template, if it is not kept yet."""
    s = plan.layout.find("prefix")
    if not plan.depth[s.start : s.stop].any():
        return plan
    depth = plan.depth.clone()
    depth[s.start : s.stop] = 0
    return replace(plan, depth=depth, kept=(*plan.kept, Kept(blocks.template(plan.layout)["prefix"], s.start)))
