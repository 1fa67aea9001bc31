"""Judging every candidate alone: what is left of a judge that cannot compare, and needs no cache to be built."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvattn.engine.plan import dense_plan
from kvattn.methods.base import Method


@dataclass(frozen=True)
class Pointwise(Method):
    """A prompt a candidate, judged densely by the same readout; the best score is the choice.

    No order can matter, and nothing is compared. The meter counts every prompt whole, the question again in each. There
    is no row over slots."""

    name = "pointwise"
    source = "baseline (pointwise instead of listwise judging)"
    keeps = False

    def prompts(self, prompt):
        """The prompt with one candidate, for every slot."""
        return tuple(replace(prompt, candidates=(prompt.shown(s),), order=(0,)) for s in range(prompt.n))

    def plan(self, layout, blocks, engine):
        """Everything recomputed."""
        return dense_plan(layout, engine.layers)
