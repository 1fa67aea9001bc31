"""Selective recomputation: another method's plan, naive-linked by default, except for a budget of candidate tokens that
a policy picks.

A policy is a small subclass that scores tokens; the highest scores are recomputed. A pass made to score them (a probe)
is paid for in the plan's meter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan, dense_plan
from kvattn.errors import KvattnError
from kvattn.methods.naive import keep_prefix
from kvattn.methods.over import Over


@dataclass(frozen=True)
class Selective(Over):
    """The seam of all policies: subclasses give `score`.

    Parameters
    ----------
    budget : share of the candidate tokens that is recomputed, 0 to 1.
    per : "slot" spends the same share in every candidate, "whole" lets the scores compete across candidates, "ramp"
        spends more in later slots, from none in the first to twice the share in the last: a candidate lacks the more
        context the more candidates stand before it.
    shrink : the budget at the last layer over the budget at the first, 0 to 1; in between it falls linearly, and the
        tokens with the lowest scores leave first. 1 recomputes the same tokens at every layer.
    prefix : "kept" saves the text before the question, exactly, whatever the base does.
    """

    budget: float = 0.15
    per: Literal["slot", "whole", "ramp"] = "slot"
    shrink: float = 1.0
    prefix: Literal["recomputed", "kept"] = "recomputed"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("budget", "shrink"):
            if not 0 <= getattr(self, name) <= 1:
                raise KvattnError(f"method {self.name!r}: {name} is a share from 0 to 1, not {getattr(self, name)}")

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        stale = self.base.plan(layout, blocks, engine)
        if self.prefix == "kept":
            stale = keep_prefix(stale, blocks)
        if self.budget == 0:
            return stale
        if self.budget == 1 and self.shrink == 1 and self.per != "ramp":
            return stale.recompute(layout.mask("candidate"))
        scores, spent = self.score(layout, blocks, engine, stale)
        depth = allot(scores, layout, engine.layers, self.budget, self.per, self.shrink)
        spent += stale.probe_token_layers
        return replace(stale, depth=torch.maximum(stale.depth, depth), probe_token_layers=spent)

    def score(
        self, layout: PromptLayout, blocks: Blocks, engine: Engine, stale: KVPlan
    ) -> tuple[Float[Tensor, " tokens"], int]:
        """Scores of all tokens (those outside candidates are ignored), and the token-layers spent to find them."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores")


def allot(
    scores: Float[Tensor, " tokens"], layout: PromptLayout, layers: int, budget: float, per: str, shrink: float
) -> Tensor:
    """[tokens], through how many layers each candidate token is computed: the best-scored `budget` of them through the
    first layer, the best `budget * shrink` of them through the last."""
    depth = torch.zeros(len(layout), dtype=torch.long)
    spans = [torch.arange(s.start, s.stop) for s in layout.each("candidate")]
    spans = [torch.cat(spans)] if per == "whole" else spans
    for i, span in enumerate(spans):
        share = budget * (2 * i / (len(spans) - 1) if per == "ramp" and len(spans) > 1 else 1)
        ranked = span[torch.argsort(scores[span], descending=True, stable=True)]
        for layer in range(layers):
            fall = layer / (layers - 1) if layers > 1 else 0.0
            count = min(len(ranked), round(len(ranked) * share * (1 - (1 - shrink) * fall)))
            depth[ranked[:count]] = layer + 1
    return depth


def by_group(
    worth: Float[Tensor, " tokens"], group: Int[Tensor, " tokens"], within: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Scores under which whole groups are taken, the worthiest first; of the last one, for which the budget does not
    last, its best tokens `within`.

    worth: of each token's group, the same for all of its tokens; group: its number, the lower one first among equals
    """
    order = np.lexsort((within.numpy(), -group.numpy(), worth.numpy()))
    scores = torch.zeros(len(worth))
    scores[torch.from_numpy(order)] = torch.arange(len(order), dtype=torch.float32)
    return scores


def asking(stale: KVPlan, most: int | None = None) -> tuple[int, ...]:
    """Of the last `most` tokens of the suffix (None: all of it), those that the plan computes through all layers."""
    suffix = stale.layout.find("suffix")
    first = suffix.start if most is None else max(suffix.start, suffix.stop - most)
    return tuple(t for t in range(first, suffix.stop) if stale.depth[t] == stale.layers)


def _drift(stale: KVPlan, fresh: Execution, layers: slice) -> Tensor:
    """[tokens], squared difference of fresh and stale values over those layers, heads and channels."""
    scores, values = torch.zeros(len(stale.layout)), fresh.cache()[1][layers]
    for kept in stale.kept:
        span = slice(kept.start, kept.start + len(kept.block))
        change = values[:, :, span].float() - kept.block.values[layers].float().to(values.device)
        scores[span] = change.square().sum((0, 1, 3)).cpu()
    return scores


def _edges(layout: PromptLayout, last: bool) -> Tensor:
    """Scores that fall from the last (or first) token of every candidate."""
    scores = torch.zeros(len(layout))
    for s in layout.each("candidate"):
        ramp = torch.arange(s.length, dtype=torch.float32)
        scores[s.start : s.stop] = ramp if last else -ramp
    return scores


@dataclass(frozen=True)
class FirstK(Selective):
    """The first tokens of each candidate, where isolated blocks grow sinks of their own."""

    name = "first-k"
    source = "EPIC / LegoLink (Hu et al., ICML 2025)"

    def score(self, layout, blocks, engine, stale):
        return _edges(layout, last=False), 0


@dataclass(frozen=True)
class LastK(Selective):
    """The last tokens of each candidate, where its answer stands."""

    name = "last-k"
    source = "kvattn"

    def score(self, layout, blocks, engine, stale):
        return _edges(layout, last=True), 0


@dataclass(frozen=True)
class KVDeviation(Selective):
    """The tokens whose values at an early layer differ most from a fresh pass up to there.

    Parameters
    ----------
    check : the layer that is compared (the first whose keys and values depend on context is 1).
    """

    check: int = 1

    name = "kv-deviation"
    source = "CacheBlend (Yao et al., EuroSys 2025)"

    def score(self, layout, blocks, engine, stale):
        """Squared difference of fresh and stale values at the check layer, over heads and channels."""
        probe = engine.probe(dense_plan(layout, engine.layers), self.check)
        return _drift(stale, probe, slice(self.check, self.check + 1)), probe.cost.token_layers


@dataclass(frozen=True)
class QueryAttention(Selective):
    """The tokens that the end of the prompt attends to, on the stale cache.

    Parameters
    ----------
    queries : how many of the last prompt tokens ask.
    depth : through how many layers the scoring pass runs; None: all but the last.
    """

    queries: int = 8
    depth: int | None = None

    name = "query-attention"
    source = "the ProphetKV / CacheClip family (ICML 2026; arXiv 2510.10129)"

    def score(self, layout, blocks, engine, stale):
        """Mean attention over queries, layers and heads in a pass over the base's plan; of the last tokens those ask
        that it computes."""
        wanted = Wanted(queries=asking(stale, self.queries), rows=True)
        probe = engine.probe(stale, self.depth or engine.layers - 1, wanted)
        return probe.rows().mean((0, 1, 2))[: len(layout)], probe.cost.token_layers


@dataclass(frozen=True)
class A3(Selective):
    """The tokens that the judge's task attends to most among all candidates' tokens, in the first layer.

    As published, but that the suffix asks, since a judge's question stands before its candidates, and that the first
    layer of the others is not recomputed: its keys and values are the same with and without context.

    Parameters
    ----------
    depth : through how many of the first layers attention is summed; the paper's is one.
    """

    per: Literal["slot", "whole", "ramp"] = "whole"
    depth: int = 1

    name = "a3"
    source = "A3 (Zhou et al. 2025, arXiv 2511.17560), the layer after the code of KVPacket"

    def score(self, layout, blocks, engine, stale):
        """Attention over the candidates' tokens alone, summed over the suffix, layers and heads."""
        probe = engine.probe(stale, self.depth, Wanted(queries=asking(stale), rows=True))
        inside = probe.rows()[..., : len(layout)] * layout.mask("candidate")
        share = inside / inside.sum(-1, keepdim=True).clamp_min(torch.finfo(inside.dtype).tiny)
        return share.sum((0, 1, 2)), probe.cost.token_layers


@dataclass(frozen=True)
class CrossCandidate(Selective):
    """The tokens that give or get most attention across candidates in a shallow dense pass.

    Parameters
    ----------
    depth : layers of the pass.
    role : "gets" scores how much other candidates look at a token, "gives" how much it looks at them, "both" the sum.
    """

    depth: int = 2
    role: Literal["gets", "gives", "both"] = "both"

    name = "cross-candidate"
    source = "kvattn"

    def score(self, layout, blocks, engine, stale):
        """Cross-candidate attention, mean over layers and heads."""
        asked = tuple(torch.nonzero(layout.mask("candidate"))[:, 0].tolist())
        if not asked:
            return torch.zeros(len(layout)), 0
        probe = engine.probe(dense_plan(layout, engine.layers), self.depth, Wanted(queries=asked, received=True))
        assert probe.captured is not None
        assert probe.captured.received is not None
        candidate = torch.tensor([s.role == "candidate" for s in layout.segments])
        foreign = candidate[:, None] & candidate & ~torch.eye(len(candidate), dtype=torch.bool)  # [segments, segments]
        scores, index = torch.zeros(len(layout)), torch.tensor(asked)
        if self.role != "gets":
            mass = reduce(probe.captured.mass, "query layer head segment -> query segment", "mean")
            scores[index] += (mass * foreign[layout.segment_of[index]]).sum(1)
        if self.role != "gives":
            received = reduce(probe.captured.received, "layer segment token -> segment token", "mean")
            scores += (received * foreign[:, layout.segment_of]).sum(0)
        return scores, probe.cost.token_layers


@dataclass(frozen=True)
class Sinks(Selective):
    """Block starts, then the tokens whose stale value vectors are shortest: what looks like a sink."""

    name = "sinks"
    source = "kvattn, after Gu et al. 2024 (arXiv 2410.10781)"

    def score(self, layout, blocks, engine, stale):
        """Minus the value norm over the layer's median, mean over layers; the first token of each block on top."""
        scores = torch.zeros(len(layout))
        for kept in stale.kept:
            if not len(kept.block):
                continue
            norm = kept.block.values.float().norm(dim=-1).mean(1)  # [layers, tokens]
            relative = (norm / norm.median(-1, keepdim=True).values.clamp_min(1e-12)).mean(0)
            scores[kept.start : kept.start + len(kept.block)] = -relative.cpu()
            scores[kept.start] = torch.inf
        return scores, 0


@dataclass(frozen=True)
class Random(Selective):
    """Random tokens: what a budget buys without a policy.

    Parameters
    ----------
    seed : of the draw, which also depends on the question's ids.
    """

    seed: int = 0

    name = "random"
    source = "control"

    def score(self, layout, blocks, engine, stale):
        rng = np.random.default_rng([self.seed, *blocks.prompt.id.encode(), *blocks.prompt.order])
        return torch.from_numpy(rng.random(len(layout))).float(), 0


@dataclass(frozen=True)
class Oracle(Selective):
    """The tokens with the largest true drift: an upper bound, since finding them costs a dense pass (metered)."""

    name = "oracle"
    source = "control (upper bound)"

    def score(self, layout, blocks, engine, stale):
        """Squared difference of dense and stale values, over all layers, heads and channels."""
        dense = engine.encode(layout)
        return _drift(stale, dense, slice(None)), dense.cost.token_layers


POLICIES: tuple[type[Selective], ...] = (
    *(FirstK, LastK, KVDeviation, QueryAttention, A3, CrossCandidate, Sinks, Random, Oracle),
)
