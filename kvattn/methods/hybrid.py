"""Mixtures of dense and stale candidates: the likeliest winners dense, or the stale ones added one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan
from kvattn.errors import KvattnError
from kvattn.methods.over import Over


@dataclass(frozen=True)
class Hybrid(Over):
    """The k likeliest winners recomputed, the other candidates kept.

    Parameters
    ----------
    k : candidates that are recomputed.
    likelihood : "base" ranks by the base's own distribution over slots (that pass is paid for in the meter); "logprob"
        by the execution side's mean log-probability of each candidate.
    """

    k: int = 1
    likelihood: Literal["base", "logprob"] = "base"

    name = "hybrid"
    source = "an open question of Liang et al. 2026 (arXiv 2601.08343)"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        if self.k < 0:
            raise KvattnError(f"method {self.name!r}: k counts candidates, not {self.k}")
        stale = self.base.plan(layout, blocks, engine)
        spent = stale.probe_token_layers
        if self.likelihood == "base":
            run = engine.execute([stale])[0]
            assert run.logits is not None
            scores = torch.from_numpy(layout.scores(run.logits)[0])
            spent += run.cost.token_layers
        else:
            scores = torch.tensor([blocks.log_probability(c) for c in layout.candidates])
        again = torch.zeros(len(layout), dtype=torch.bool)
        for slot in torch.argsort(scores, descending=True, stable=True)[: self.k].tolist():
            s = layout.find("candidate", slot)
            again[s.start : s.stop] = True
        return replace(stale.recompute(again), probe_token_layers=spent)


@dataclass(frozen=True)
class Progressive(Over):
    """The first k displayed candidates kept, the rest recomputed: does the damage of stale blocks accumulate?

    Parameters
    ----------
    k : candidates that are kept, counted from slot 1.
    """

    k: int = 1

    name = "progressive"
    source = "a suggested check of Liang et al. 2026 (arXiv 2601.08343)"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        again = torch.zeros(len(layout), dtype=torch.bool)
        for s in layout.each("candidate"):
            if s.slot is not None and s.slot >= self.k:
                again[s.start : s.stop] = True
        return self.base.plan(layout, blocks, engine).recompute(again)
