"""The last tokens of each candidate, counted and not as a share, computed in the judge's prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan, Visibility
from kvattn.errors import KvattnError
from kvattn.methods.over import Over

Sight = Literal["seeing", "blind"]


@dataclass(frozen=True)
class Tail(Over):
    """Its base's plan with the last tokens of each candidate computed.

    Parameters
    ----------
    tokens : how many of each candidate, 0 or more; a shorter candidate is computed whole.
    sight : "seeing" tokens see all that stands before them, as their base has it; "blind" ones, with headers and
        separators, see prefix, question and their own slot alone: what seeing adds at equal cost.
    layers : through how many layers they are computed, from the first; above, the base's stand. None: all.
    """

    tokens: int = 2
    sight: Sight = "seeing"
    layers: int | None = None

    name = "tail"
    source = "kvattn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 0:
            raise KvattnError(
                f"method {self.name!r}: tokens counts those of a candidate, not {self.tokens}; give 0 or more"
            )
        if self.layers is not None and self.layers < 1:
            raise KvattnError(f"method {self.name!r}: layers is 1 or more, not {self.layers}; tokens=0 computes none")

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        if self.layers is not None and self.layers > engine.layers:
            raise KvattnError(f"method {self.name!r}: layers={self.layers}, but this model has {engine.layers}")
        again = torch.zeros(len(layout), dtype=torch.bool)
        for s in layout.each("candidate"):
            again[max(s.start, s.stop - self.tokens) : s.stop] = True
        plan = self.base.plan(layout, blocks, engine).recompute(again, self.layers)
        return plan if self.sight == "seeing" else replace(plan, visibility=Visibility.isolated(layout))
