"""Link tokens: a few tokens after each candidate that are no text of the prompt and are always computed.

They stand where a candidate has just ended, read what their plan lets them see, and are seen in their turn: fresh KV
that a prompt of kept candidates can speak through (KVLink, arXiv 2502.16002). Their ids say how they start; an adapter
may hold embeddings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import Kept, KVPlan, Visibility
from kvattn.errors import KvattnError


def with_links(plan: KVPlan, ids: Sequence[int]) -> KVPlan:
    """The plan with the tokens `ids` after every candidate, at the positions that follow it.

    Links see all before them, and are seen by whoever sees their candidate. Raises KvattnError for a plan whose tokens
    stand at positions of their own: nothing says where links would."""
    old = plan.layout
    if not torch.equal(plan.positions, old.positions):
        raise KvattnError("link tokens need a plan at the prompt's own positions; take a base such as naive-linked")
    if plan.reach is not None or any(True for _ in old.each("link")):
        raise KvattnError("links stand in this plan already; give their number once (count=)")
    layout, source = _insert(old, list(ids))
    of = torch.tensor(source)
    allowed = plan.visibility.allowed[..., of, :][..., of].clone()
    allowed[..., torch.tensor([s.role == "link" for s in layout.segments]), :] = True
    is_link = layout.mask("link")
    place = (~is_link).nonzero()[:, 0]  # [old tokens], where each stands now
    depth = torch.full((len(layout),), plan.layers)
    depth[place] = plan.depth
    return replace(
        plan,
        layout=layout,
        depth=depth,
        kept=tuple(part for k in plan.kept for part in _moved(k, place)),
        visibility=Visibility(allowed, plan.visibility.causal),
        positions=layout.positions,
    )


def _insert(old: PromptLayout, ids: list[int]) -> tuple[PromptLayout, list[int]]:
    """The layout with links, and for every segment the old one whose place in the visibility it takes."""
    parts, source = [], []
    for i, s in enumerate(old.segments):
        parts.append((s.role, s.slot, old.token_ids[s.start : s.stop].tolist()))
        source.append(i)
        if s.role == "candidate":
            parts.append(("link", s.slot, ids))
            source.append(i)
    return join(parts, old.candidates, old.answer_ids, old.reader, old.begun), source


def _moved(kept: Kept, place: Tensor) -> list[Kept]:
    """A kept block at its new place, cut where links stand within it."""
    n = len(kept.block)
    if not n:
        return [kept]
    at = place[kept.start : kept.start + n]
    cuts = [0, *((at.diff() != 1).nonzero()[:, 0] + 1).tolist(), n]
    return [
        replace(kept, block=kept.block if b - a == n else kept.block.part(a, b), start=int(at[a]))
        for a, b in pairwise(cuts)
    ]
