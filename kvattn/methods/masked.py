"""Cutting candidate-to-candidate attention without stale caches: a true mask, or blocks made behind the judge's own
prefix and moved. With dense and reuse they form the ladder that says which change costs what."""

from __future__ import annotations

from dataclasses import dataclass

from kvattn.engine.plan import Visibility, dense_plan, keep
from kvattn.methods.base import Method


@dataclass(frozen=True)
class TrueMask(Method):
    """Everything recomputed in place, but each block (header, candidate, separator) sees prefix, question and itself.

    Against dense it changes the interaction between candidates and nothing else."""

    name = "true-mask"
    source = "the masking ablation of Liang et al. 2026 (arXiv 2601.08343)"
    keeps = False

    def plan(self, layout, blocks, engine):
        """Dense under the isolated-block rule."""
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
        """Keep the isolated blocks and recompute the rest."""
        made = blocks.isolated(layout, self.labelled)
        placed = [(s, made[s.name]) for s in layout.segments if s.name in made]
        return keep(layout, engine.layers, placed, Visibility.isolated(layout, ("header", "separator")))
