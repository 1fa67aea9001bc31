"""Orders of one question begin alike: what their prompts have in common from the start on is computed once.

A later plan keeps its leading tokens from an earlier plan's execution. That is exact, since keys and values depend on
nothing that comes after them. All 24 orders of four candidates compute 64 candidate blocks this way instead of 96.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.plan import Kept, KVBlock, KVPlan


def execute(
    engine: Engine,
    plans: Sequence[KVPlan],
    wanted: Sequence[Wanted] | None = None,
    keep_cache: bool = False,
    room: int = 0,
    max_batch: int = 8,
) -> list[Execution]:
    """`Engine.execute` with shared beginnings; results in the order given.

    Each result names the plan that was asked for and counts its tokens as if it had run alone: what a method costs does
    not depend on which other orders were judged. `seconds` and the engine's meter say what was really done."""
    asked = list(wanted) if wanted is not None else [None] * len(plans)
    sources = _sources(plans, [_first_read(p, w) for p, w in zip(plans, asked, strict=True)])
    if not any(length for _, length in sources):
        return engine.execute(plans, wanted, keep_cache, room=room, max_batch=max_batch)
    needed = [max((n for j, n in sources if j == i), default=0) for i in range(len(plans))]  # by later plans
    readers = Counter(j for j, length in sources if length)  # plans that still take from it
    begun: dict[int, KVBlock] = {}
    out: dict[int, Execution] = {}
    for some in _rounds(plans, sources, max_batch):
        shorter = [_continued(plans[i], begun.get(sources[i][0]), sources[i][1]) for i in some]
        for source, length in (sources[i] for i in some):
            readers[source] -= length > 0
            if not readers[source]:
                begun.pop(source, None)
        want = None if wanted is None else [wanted[i] for i in some]
        keep = keep_cache or any(needed[i] for i in some)
        for i, run in zip(some, engine.execute(shorter, want, keep, room=room, max_batch=max_batch), strict=True):
            if needed[i]:
                begun[i] = run.span(0, needed[i])
            if not keep_cache and not room:
                run.keys = run.values = None
            was = run.cost
            cost = engine.cost(plans[i], engine.layers, was.seconds, was.batch, was.kv_bytes * was.batch)
            run.plan, run.cost = plans[i], cost
            out[i] = run
    return [out[i] for i in range(len(plans))]


def _first_read(plan: KVPlan, wanted: Wanted | None) -> int:
    """The first token that must be computed whatever others have in store: it decides or its row is wanted."""
    return min(*plan.layout.decisions, len(plan.layout), *((wanted and wanted.queries) or ()))


def _sources(plans: Sequence[KVPlan], limits: Sequence[int]) -> list[tuple[int, int]]:
    """For every plan, the earlier one that begins most alike and how many leading tokens it can take from it."""
    first: dict[tuple, int] = {}  # the plan that a beginning was met in first
    out = []
    for i, (plan, limit) in enumerate(zip(plans, limits, strict=True)):
        source, length, beginning = i, 0, ()
        for segment, means in zip(plan.layout.segments, _dependencies(plan), strict=True):
            beginning = (*beginning, means)
            known = first.setdefault(beginning, i)
            if known < i:
                source, length = known, segment.stop
        out.append((source, min(length, limit)))
    return out


def _dependencies(plan: KVPlan) -> Iterator[tuple]:
    """For every segment, all that its keys and values depend on besides the segments before it."""
    tokens = torch.stack([plan.layout.token_ids, plan.positions, plan.depth])
    for i, s in enumerate(plan.layout.segments):
        kept = [(id(k.block), k.start) for k in plan.kept if k.start < s.stop and s.start < k.start + len(k.block)]
        sees = plan.visibility.allowed[..., i, : i + 1]
        acts = None if plan.reach is None else (id(plan.reach.adapter), *plan.reach.tokens[s.start : s.stop].tolist())
        yield s, tokens[:, s.start : s.stop].numpy().tobytes(), tuple(kept), sees.numpy().tobytes(), acts


def _continued(plan: KVPlan, begun: KVBlock | None, length: int) -> KVPlan:
    """The plan with its first `length` tokens kept from an execution of another that begins alike."""
    if begun is None or not length:
        return plan
    depth = plan.depth.clone()
    depth[:length] = 0
    rest = [
        Kept(k.block.part(max(0, length - k.start), len(k.block)), max(k.start, length), k.foreign)
        for k in plan.kept
        if k.start + len(k.block) > length
    ]
    reach = None if plan.reach is None else plan.reach.at(depth > 0)
    return replace(plan, depth=depth, kept=(Kept(begun.part(0, length), 0), *rest), reach=reach)


def _rounds(plans: Sequence[KVPlan], sources: Sequence[tuple[int, int]], size: int) -> Iterator[list[int]]:
    """Plans in groups of at most `size`, those that others take from before these, similar ones together."""
    level: list[int] = []
    for source, length in sources:
        level.append(level[source] + 1 if length else 0)
    for now in range(max(level) + 1):
        members = sorted((i for i, at in enumerate(level) if at == now), key=lambda i: sources[i][1])
        for at in range(0, len(members), size):
            yield members[at : at + size]
