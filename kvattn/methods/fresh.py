"""Without stale caches: dense prefill, the reference; every candidate alone; and attention between candidates cut by a
true mask, or by blocks made behind the judge's own prefix and moved, rungs of the ladder that says which change costs
what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvattn.engine.plan import Visibility, dense_plan, keep
from kvattn.methods.base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Nothing kept, everything recomputed, through the plain causal kernel."""

    name = "dense"
    source = "the model's own prefill"
    keeps = False

    def plan(self, layout, blocks, engine):
        return dense_plan(layout, engine.layers)


@dataclass(frozen=True)
class Pointwise(Dense):
    """A prompt a candidate, judged densely by the same readout; the best score is the choice.

    No order can matter, and nothing is compared. The meter counts every prompt whole, the question again in each. There
    is no row over slots."""

    name = "pointwise"
    source = "baseline (pointwise instead of listwise judging)"

    def prompts(self, prompt):
        return tuple(replace(prompt, candidates=(prompt.shown(s),), order=(0,)) for s in range(prompt.n))


@dataclass(frozen=True)
class TrueMask(Method):
    """Everything recomputed in place, but each block (header, candidate, separator) sees prefix, question and itself.

    Against dense it changes the interaction between candidates and nothing else."""

    name = "true-mask"
    source = "the masking ablation of Liang et al. 2026 (arXiv 2601.08343)"
    keeps = False

    def plan(self, layout, blocks, engine):
        return dense_plan(layout, engine.layers, Visibility.isolated(layout))


@dataclass(frozen=True)
class Isolated(Method):
    """Blocks made alone behind the judge's own prefix and question, then moved into place.

    Parameters
    ----------
    labelled : with their label (header, candidate and separator are one block: against the true mask only positions
        change), or without it (the candidate alone is kept; header and separator are recomputed in place, seeing
        their own candidate alone: against labelled only the label's binding changes).
    """

    labelled: bool = True

    name = "isolated"
    source = "the masking ablation of Liang et al. 2026 (arXiv 2601.08343), block by block"

    def plan(self, layout, blocks, engine):
        made = blocks.isolated(layout, self.labelled)
        placed = [(s, made[s.name]) for s in layout.segments if s.name in made]
        return keep(layout, engine.layers, placed, Visibility.isolated(layout, ("header", "separator")))
