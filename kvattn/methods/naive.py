"""Naive reuse: the candidates' KV as their agents made it, moved into place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvattn.engine.blocks import TEMPLATE_ROLES, Blocks
from kvattn.engine.plan import Kept, KVPlan, Visibility, keep
from kvattn.methods.base import Method


@dataclass(frozen=True)
class Naive(Method):
    """Candidates kept from their execution contexts, keys turned to their place in the judge's prompt.

    Parameters
    ----------
    template : "recomputed" computes the template's text in the judge's prompt, where it sees the stale candidates;
        "kept" takes it from a pass over the bare template, so that only the last token is computed (as in KVCOMM).
    question : "recomputed", or "kept" from the execution context.
    headers : with template="recomputed", "linked" headers and separators see all candidates before them and act as
        link tokens between them; "isolated" ones see their own candidate alone.
    prefix : "kept" takes the text before the question from a pass over the bare template. Nothing stands before it, so
        that this changes nothing but the cost.
    """

    template: Literal["recomputed", "kept"] = "recomputed"
    question: Literal["recomputed", "kept"] = "recomputed"
    headers: Literal["linked", "isolated"] = "linked"
    prefix: Literal["recomputed", "kept"] = "recomputed"

    name = "naive"
    source = "Liang et al. 2026 (arXiv 2601.08343)"

    def plan(self, layout, blocks, engine):
        """Keep the candidates and whatever else the parameters say."""
        placed = [(s, blocks.execution(c)) for s, c in layout.shown()]
        if self.question == "kept":
            placed += [(s, blocks.question()) for s in layout.each("question")]
        if self.template == "kept":
            base = blocks.template(layout)
            for s in layout.each(*TEMPLATE_ROLES):
                block = base[s.name]
                if s.stop == layout.trunk and s.length:  # the last token asks, so it is computed
                    s, block = type(s)(s.role, s.slot, s.start, s.stop - 1), block.part(0, len(block) - 1)
                placed.append((s, block))
        own = ("header", "separator")
        visibility = Visibility.isolated(layout, own) if self.headers == "isolated" else None
        plan = keep(layout, engine.layers, placed, visibility)
        return keep_prefix(plan, blocks) if self.prefix == "kept" else plan


def keep_prefix(plan: KVPlan, blocks: Blocks) -> KVPlan:
    """The plan with the text before the question kept from a pass over the bare template, if it is not kept yet."""
    s = plan.layout.find("prefix")
    if not plan.depth[s.start : s.stop].any():
        return plan
    depth = plan.depth.clone()
    depth[s.start : s.stop] = 0
    return replace(plan, depth=depth, kept=(*plan.kept, Kept(blocks.template(plan.layout)["prefix"], s.start)))
