"""Dense prefill: the reference that every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from kvattn.engine.plan import dense_plan
from kvattn.methods.base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Nothing kept, everything recomputed, through the plain causal kernel."""

    name = "dense"
    source = "the model's own prefill"
    keeps = False

    def plan(self, layout, blocks, engine):
        """Everything recomputed."""
        return dense_plan(layout, engine.layers)
