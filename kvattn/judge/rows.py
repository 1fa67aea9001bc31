"""The attention rows that a decision carries: which queries, what falls on each segment, and what on sink tokens."""

from __future__ import annotations

from dataclasses import replace

from kvattn.decision import SlotMass
from kvattn.engine.capture import Captured, Wanted
from kvattn.engine.layout import PromptLayout


def decision_rows(layout: PromptLayout, wanted: Wanted | None = None) -> Wanted:
    """What to capture of a judgement: the rows of the tokens that decide first, then of those that `wanted` asks for;
    and the mass on the sinks that are found on the former."""
    wanted = wanted or Wanted()
    queries = tuple(dict.fromkeys((*layout.deciding, *(wanted.queries or ()))))
    return replace(wanted, queries=queries, find_sinks=len(layout.deciding))


def slot_masses(captured: Captured, layout: PromptLayout) -> list[SlotMass]:
    """SlotMass of the decision row, then of every captured query but the last prompt token.

    The decision row is that of the last prompt token ("last_prompt") or, where every slot has a branch, the mean over
    the branches' ends ("at_choice"), each of which follows as "at_choice:K". Any other prompt index is "token:I"."""
    branches = layout.segments[-1].role == "branch"
    at = [captured.queries.index(q) for q in layout.deciding if q in captured.queries]

    def masses(which: list[int], query: str) -> SlotMass:
        kinds = (captured.mass, captured.sink, captured.norm)
        mass, sink, norm = (None if x is None else x[which].mean(0).numpy() for x in kinds)
        assert mass is not None
        return SlotMass(mass, sink, layout.names, layout.lengths, query, norm)

    out = [masses(at, "at_choice" if branches else "last_prompt")] if at else []
    for i, q in enumerate(captured.queries):
        if i not in at:
            out.append(masses([i], f"token:{q}"))
        elif branches:
            out.append(masses([i], f"at_choice:{layout.deciding.index(q) + 1}"))
    return out
